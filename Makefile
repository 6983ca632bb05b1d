# Two commands on a fresh machine: `make train` and `make test`. Everything else is a shortcut.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RANKS ?= 2

.PHONY: help train train-s3 test lint drill bench clean

help:
	@echo "make train   set up, then train the main job on $(RANKS) processes (runs/stdlib; again: it resumes)"
	@echo "make train-s3  the same with its steps in an S3 server on this machine (runs/s3)"
	@echo "make test    set up, then run the tests"
	@echo "make lint    ruff, mypy, import contracts, hadolint"
	@echo "make drill   kill ranks in the middle of a save and compare with an uninterrupted run"
	@echo "make bench   measure saves and loads beside other checkpointers (an hour; BENCH=--quick: minutes)"
	@echo "make clean   remove the environment and everything in runs/"

train: $(VENV)/ready
	$(BIN)/torchrun --standalone --nproc-per-node $(RANKS) --max-restarts 3 launch/train.py launch/recipes/text.toml
	$(BIN)/keepstep ls runs/stdlib

# The server ends with the command that it was started for; its data and its port stay.
WITH_S3 := $(BIN)/python -m keepstep.testing.s3_server --directory runs/s3 --bucket keepstep --

train-s3: $(VENV)/ready
	$(WITH_S3) $(BIN)/torchrun --standalone --nproc-per-node $(RANKS) --max-restarts 3 launch/train.py \
		launch/recipes/text.toml --uri s3://keepstep/stdlib
	$(WITH_S3) $(BIN)/keepstep ls s3://keepstep/stdlib

test: $(VENV)/ready
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile

drill: $(VENV)/ready
	$(BIN)/keepstep drill run smoke

bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m benchmarks $(BENCH)

# Set up once, and again only when what is installed has changed.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,lint]"
	touch $@

clean:
	rm -rf $(VENV) runs
