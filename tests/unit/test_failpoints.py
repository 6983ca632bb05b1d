"""Crash sites: armed by a specification, free and silent otherwise."""

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keepstep import failpoints
from keepstep.failpoints import FAILPOINTS, FailpointError
from keepstep.phases import Phase

SOURCE = Path(failpoints.__file__).parent


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


def arm(specification: str, rank: int = 0, restart_count: int = 0) -> None:
    failpoints.arm(specification, rank=rank, restart_count=restart_count)


def test_a_disarmed_site_does_nothing() -> None:
    for site in FAILPOINTS:
        failpoints.hit(site, step=1)


def test_a_rule_acts_at_its_site_and_step_once() -> None:
    arm("write.middle=raise@step:20")
    failpoints.hit("write.middle", step=10)
    failpoints.hit("write.before", step=20)
    with pytest.raises(FailpointError, match=r"write\.middle"):
        failpoints.hit("write.middle", step=20)
    failpoints.hit("write.middle", step=20)


@pytest.mark.parametrize(
    ("conditions", "rank", "restart_count", "acts"),
    [
        ("", 3, 0, True),
        ("@rank:1", 1, 0, True),
        ("@rank:1", 0, 0, False),
        ("", 0, 1, False),
        ("@restart:1", 0, 1, True),
        ("@restart:any", 0, 5, True),
        ("@rank:1@restart:2", 1, 2, True),
        ("@rank:1@restart:2", 1, 0, False),
    ],
)
def test_rank_and_restart_decide_whether_a_rule_applies(
    conditions: str, rank: int, restart_count: int, acts: bool
) -> None:
    arm(f"publish.before=raise:ENOSPC{conditions}", rank, restart_count)
    if acts:
        with pytest.raises(OSError, match="No space") as caught:
            failpoints.hit("publish.before", step=1)
        assert caught.value.errno == errno.ENOSPC
    else:
        failpoints.hit("publish.before", step=1)


def test_several_rules_are_separated_by_semicolons() -> None:
    arm("stage.before=raise@step:1; stage.after=raise@step:2 ;")
    failpoints.hit("stage.after", step=1)
    with pytest.raises(FailpointError):
        failpoints.hit("stage.before", step=1)
    with pytest.raises(FailpointError):
        failpoints.hit("stage.after", step=2)


@pytest.mark.parametrize(
    ("specification", "named"),
    [
        ("write.midle=kill", "write.midle"),
        ("write.middle", "write.middle"),
        ("write.middle=explode", "explode"),
        ("write.middle=kill:9", "kill"),
        ("write.middle=exit:x", "exit"),
        ("write.middle=raise:ENONSENSE", "raise"),
        ("write.middle=kill@rank:one", "rank:one"),
        ("write.middle=kill@node:1", "node:1"),
    ],
)
def test_a_rule_that_cannot_be_read_is_named_and_nothing_is_armed(
    specification: str, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        arm(specification)
    failpoints.hit("write.middle", step=1)


@pytest.mark.parametrize(("action", "status"), [("kill", -signal.SIGKILL), ("exit:7", 7)])
def test_kill_and_exit_end_the_process_at_once(action: str, status: int) -> None:
    program = (
        "from keepstep import failpoints\n"
        f"failpoints.arm('write.middle={action}', rank=0, restart_count=0)\n"
        "try:\n    failpoints.hit('write.middle', step=1)\n"
        "finally:\n    print('still alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == status
    assert done.stdout == ""


@pytest.mark.parametrize(("action", "status"), [("loop", 3), ("hold", 1)])
def test_a_loop_lets_other_threads_run_and_a_hold_does_not(action: str, status: int) -> None:
    """A thread of C ends the process with 1; one of Python would have, much sooner, with 3."""
    program = (
        "import faulthandler, os, threading\n"
        "from keepstep import failpoints\n"
        f"failpoints.arm('step.after={action}', rank=0, restart_count=0)\n"
        "faulthandler.dump_traceback_later(1, exit=True)\n"
        "threading.Timer(0.2, os._exit, (3,)).start()\n"
        "failpoints.hit('step.after', step=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == status
    assert (b"in _act" in done.stderr) == (action == "hold")


def test_every_site_is_in_the_code() -> None:
    code = "".join(
        path.read_text() for path in SOURCE.rglob("*.py") if path.name != "failpoints.py"
    )
    for site in FAILPOINTS:
        phase, _, moment = site.partition(".")
        is_literal = f'"{site}"' in code
        is_timed = phase in list(Phase) and f"timeline.phase(Phase.{phase.upper()})" in code
        is_border = f"{{Phase.{phase.upper()}}}.{moment}" in code
        assert is_literal or is_timed or is_border, site


def test_a_rule_may_wait_for_a_later_pass() -> None:
    arm("write.middle=raise@pass:2@step:20")
    failpoints.hit("write.middle", step=10)
    failpoints.hit("write.middle", step=20)
    with pytest.raises(FailpointError):
        failpoints.hit("write.middle", step=20)


def test_what_is_done_is_logged_before_it_is_done(tmp_path: Path) -> None:
    log = tmp_path / "log"
    failpoints.arm("write.middle=raise:ENOSPC", rank=1, restart_count=0, log=log)
    with pytest.raises(OSError, match="write"):
        failpoints.hit("write.middle", step=20)
    line = json.loads(log.read_text())
    assert line.pop("time") > 0
    assert line == {
        "rank": 1,
        "step": 20,
        "restart": 0,
        "site": "write.middle",
        "action": "raise",
        "argument": "ENOSPC",
    }


def test_spoiling_is_left_to_the_site() -> None:
    spoiled: list[str] = []
    arm("load.after=spoil:rng")
    failpoints.hit("load.after", step=5, spoil=spoiled.append)
    assert spoiled == ["rng"]
    with pytest.raises(ValueError, match=r"load\.after only"):
        arm("write.middle=spoil:rng")
