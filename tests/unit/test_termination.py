"""The last words of a launcher agree with the code that it ends with."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from keepstep.errors import ExitCode
from keepstep.launch.budget import Budget
from keepstep.launch.run import run
from keepstep.launch.supervisor import Job
from keepstep.launch.termination import last_words_left


def words_after(path: Path, error: BaseException, *, decided: int | None = None) -> str:
    job = Job(path, path, Budget(5, None), "SIGTERM")
    job.exit_code = decided
    with pytest.raises(type(error)), last_words_left(path / "words", job, {}):
        raise error
    return (path / "words").read_text()


@pytest.mark.parametrize("code", [ExitCode.OK, ExitCode.PREEMPTED])
def test_one_that_leaves_with_a_code_says_that_code(tmp_path: Path, code: int) -> None:
    words = words_after(tmp_path, SystemExit(int(code)))
    assert f"exit code: {int(code)}" in words
    assert "cause:" not in words


def test_one_that_breaks_says_1_and_why(tmp_path: Path) -> None:
    words = words_after(tmp_path, ValueError("no such thing"))
    assert "exit code: 1 " in words
    assert "cause: ValueError: no such thing" in words


def test_a_code_that_is_decided_stays(tmp_path: Path) -> None:
    words = words_after(tmp_path, KeyboardInterrupt(), decided=ExitCode.DAMAGED)
    assert "exit code: 65" in words


@pytest.fixture
def handlers_restored() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers_restored")
def test_a_signal_does_not_change_how_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*_: object) -> int:
        raise SystemExit(ExitCode.PREEMPTED)

    monkeypatch.setattr("keepstep.launch.run._launch", launch)
    with pytest.raises(SystemExit):
        run(["--log-dir", str(tmp_path), __file__])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
