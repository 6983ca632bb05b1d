# Two commands on a fresh machine: `make train` and `make test`. Everything else is a shortcut.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RANKS ?= 2

.PHONY: help train test lint drill bench clean

help:
	@echo "make train   set up, then train the main job on $(RANKS) processes (runs/stdlib; again: it resumes)"
	@echo "make test    set up, then run the tests"
	@echo "make lint    ruff, mypy, import contracts"
	@echo "make drill   kill ranks in the middle of a save and compare with an uninterrupted run"
	@echo "make bench   measure saves and loads beside other checkpointers (an hour; BENCH=--quick: minutes)"
	@echo "make clean   remove the environment and everything in runs/"

train: $(VENV)/ready
	$(BIN)/torchrun --standalone --nproc-per-node $(RANKS) --max-restarts 3 launch/train.py launch/recipes/text.toml
	$(BIN)/keepstep ls runs/stdlib

test: $(VENV)/ready
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

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
