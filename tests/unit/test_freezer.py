"""Control groups that make processes stand still, and leave nothing behind."""

import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from keepstep.testing.freezer import Freezer, can_freeze

pytestmark = pytest.mark.skipif(not can_freeze(), reason="freezing takes root and control groups")

_ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)\n"


@pytest.fixture
def echo() -> Iterator["subprocess.Popen[str]"]:
    """A process that answers."""
    with subprocess.Popen(
        [sys.executable, "-c", _ECHO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        yield process
        process.kill()


def ask(process: "subprocess.Popen[str]", word: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{word}\n")
    return process.stdout.readline().strip()


def test_a_frozen_process_answers_once_it_is_thawed(echo: "subprocess.Popen[str]") -> None:
    assert ask(echo, "first") == "first"
    freezer = Freezer()
    try:
        freezer.freeze([echo.pid])
        assert echo.stdin is not None
        assert echo.stdout is not None
        echo.stdin.write("second\n")
        assert not select.select([echo.stdout], [], [], 0.2)[0]
        freezer.thaw()
        assert echo.stdout.readline() == "second\n"
    finally:
        freezer.close()


def test_a_group_is_removed_with_its_processes_still_alive(echo: "subprocess.Popen[str]") -> None:
    freezer = Freezer()
    freezer.freeze([echo.pid])
    freezer.close()
    assert not freezer.path.exists()
    assert ask(echo, "on") == "on"
