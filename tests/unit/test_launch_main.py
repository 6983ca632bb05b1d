import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keepstep.errors import ExitCode
from keepstep.launch import main

SMALL = [
    *("--train.steps", "6"),
    *("--train.evaluate_every", "3"),
    *("--train.log_every", "2"),
    *("--checkpoint.every", "3"),
    *("--model.layers", "1"),
    *("--model.width", "16"),
    *("--batch.global_size", "4"),
    *("--data.validation_samples", "8"),
]


def launch(directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keepstep.launch", *arguments],
        cwd=directory,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_misspelt_setting_ends_with_the_configuration_code_and_one_line(tmp_path: Path) -> None:
    job = launch(tmp_path, "--train.stepz", "5")
    assert job.returncode == ExitCode.CONFIG
    assert "train.stepz" in job.stderr
    assert "Traceback" not in job.stderr


def test_half_set_environment_ends_with_the_configuration_code(tmp_path: Path) -> None:
    job = launch(tmp_path, RANK="0", WORLD_SIZE="1")
    assert job.returncode == ExitCode.CONFIG
    assert "MASTER_ADDR" in job.stderr


def test_whatever_is_raised_is_left_for_torchrun_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("peer is gone")

    monkeypatch.setattr(main, "_main", fail)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(RuntimeError, match="peer is gone"):
        main.main([])
    (written,) = tmp_path.iterdir()
    assert json.loads(written.read_text())["message"]["message"] == "RuntimeError: peer is gone"


def test_bad_failpoint_is_refused(tmp_path: Path) -> None:
    job = launch(tmp_path, KEEPSTEP_FAILPOINTS="write.midle=kill")
    assert job.returncode == ExitCode.CONFIG
    assert "KEEPSTEP_FAILPOINTS" in job.stderr


def test_job_trains_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text("[train]\nlog_samples = true\n")
    first = launch(tmp_path, "small.toml", *SMALL, "--uri", "run")
    assert first.returncode == 0, first.stderr
    assert "step=3 epoch=0 val_loss=" in first.stderr
    assert "done step=6" in first.stderr
    assert "committed=6" in first.stderr
    longer = launch(tmp_path, "small.toml", *SMALL, "--uri", "run", "--train.steps", "8")
    assert longer.returncode == 0, longer.stderr
    assert "step=7 " in longer.stderr
    assert "step=6 " not in longer.stderr.split("step=7 ")[1]
    assert "committed=8" in longer.stderr


@pytest.mark.parametrize("task", ["digits"])
def test_another_task_trains_on_the_same_loop(tmp_path: Path, task: str) -> None:
    pytest.importorskip("sklearn")
    job = launch(tmp_path, *SMALL, "--uri", "run", "--task", task)
    assert job.returncode == 0, job.stderr
    assert "committed=6" in job.stderr


def test_training_that_gets_no_better_stops_with_its_best_weights(tmp_path: Path) -> None:
    settings = [*SMALL, "--uri", "run", "--train.steps", "400", "--train.evaluate_every", "2"]
    settings += [
        "--train.early_stop_patience",
        "2",
        "--optim.lr",
        "3.0",
        "--optim.warmup_steps",
        "1",
    ]
    job = launch(tmp_path, *settings)
    assert job.returncode == 0, job.stderr
    assert "val_loss gets no better: the weights are those of step" in job.stderr
    again = launch(tmp_path, *settings)
    assert again.returncode == 0, again.stderr
    assert "step=" not in again.stderr.split("resumed from")[1].split("done")[0], "it is over"


def test_a_loss_that_leaps_ends_the_job_and_the_restart_leaves_the_data_out(tmp_path: Path) -> None:
    settings = [*SMALL, "--uri", "run", "--train.steps", "40", "--optim.warmup_steps", "1"]
    settings += ["--train.evaluate_every", "0", "--train.spike_factor", "0.9999"]
    settings += ["--train.spike_steps", "1", "--optim.lr", "0.00001"]
    job = launch(tmp_path, *settings)
    assert job.returncode == ExitCode.TRANSIENT, job.stderr
    assert "are left out from here on, and training resumes from step" in job.stderr
    (mark,) = (tmp_path / "run" / "skips").iterdir()
    start, stop = (int(part) for part in mark.stem.split("-"))
    assert stop - start == 8


def test_a_commit_is_told_to_the_agent_that_asks_for_it(tmp_path: Path) -> None:
    mark = tmp_path / "committed"
    job = launch(tmp_path, *SMALL, "--uri", "run", KEEPSTEP_COMMIT_MARK=str(mark))
    assert job.returncode == 0, job.stderr
    assert mark.exists()
