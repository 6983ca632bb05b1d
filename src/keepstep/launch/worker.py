"""A worker's first and last words: between the agent that starts it and the script that it runs.

``keepstep run`` starts ``python -m keepstep.launch.worker [-m] SCRIPT ...`` in place of the script.
The script runs as ``__main__`` all the same; what it raises decides the exit code, and is left in
torchelastic's error file for the agent. If it ends by itself, a session of it that was told to go
decides.
"""

import json
import os
import runpy
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from keepstep.elastic import watchdog
from keepstep.elastic.orders import order_step_over, tell_cause, told_exit_code
from keepstep.elastic.watchdog import Watchdog
from keepstep.errors import ExitCode, exit_code_of
from keepstep.launch.env import tell_agent_of_commit
from keepstep.observability import startup
from keepstep.observability.numbers import METER, NUMBERS_SUFFIX
from keepstep.observability.startup import STARTUP, process_started
from keepstep.processes import die_with

AGENT = "KEEPSTEP_AGENT_PID"
HEARTBEATS = "KEEPSTEP_HEARTBEATS"
"""A directory for files of heartbeats, one a rank, named by it."""
NUMBERS = "KEEPSTEP_NUMBERS"
"""Set if the agent wants a worker's numbers beside its heartbeat."""
STEP_OVER = "KEEPSTEP_STEP_OVER"
"""Set if the newest checkpoint seems to kill whoever starts from it."""
CAUSE = "KEEPSTEP_CAUSE"
"""Why the workers are started again, for the ledger."""
RENDEZVOUS = "KEEPSTEP_RENDEZVOUS"
"""When it began, when enough nodes were there, and when it was over, in Unix seconds."""

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def main(arguments: Sequence[str]) -> None:
    """Run ``[-m] SCRIPT ...`` as the interpreter would."""
    begin_worker(os.environ)
    try:
        _run(arguments)
    except Exception as error:  # noqa: BLE001  # whatever a script raises
        note_error(error, os.environ)
        error.__traceback__ = _of_script(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(exit_code_of(error))
    # A script that just ends after a preemption must not pass for one that is through.
    sys.exit(told_exit_code())


def begin_worker(environ: Mapping[str, str]) -> Watchdog:
    """Tie this process to its agent, and install its watchdog, for whoever asks; once.

    Without an agent of keepstep's there is no file for heartbeats.
    """
    if watchdog.is_installed():
        return watchdog.installed()
    if AGENT in environ:
        die_with(int(environ[AGENT]))
        if STEP_OVER in environ:
            order_step_over()
        if CAUSE in environ:
            tell_cause(environ[CAUSE])
    elif "TORCHELASTIC_RUN_ID" in environ:
        die_with(os.getppid())
    if environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        _note_launcher()
    if RENDEZVOUS in environ:
        note_rendezvous(environ[RENDEZVOUS])
    heartbeat = Path(environ[HEARTBEATS]) / environ["RANK"] if HEARTBEATS in environ else None
    installed = Watchdog(heartbeat=heartbeat, on_commit=partial(tell_agent_of_commit, environ))
    watchdog.install(installed)
    if heartbeat is not None and NUMBERS in environ:
        METER.publish(heartbeat.with_name(heartbeat.name + NUMBERS_SUFFIX), installed.clock)
    return installed


def note_rendezvous(told: str) -> None:
    """Keep what the agent tells of the rendezvous, for the ledger."""
    began, enough, ended = map(float, told.split())
    STARTUP.note(startup.WAITING, began, enough)
    STARTUP.note(startup.RENDEZVOUS, enough, ended)


def _note_launcher() -> None:
    """It was started, and then this worker."""
    launched, started = process_started(os.getppid()), process_started()
    if launched is not None and started is not None:
        STARTUP.note(startup.LAUNCHER, launched, started)


def note_error(error: BaseException, environ: Mapping[str, str]) -> None:
    """Leave the error for the agent, in torchelastic's form, unless one is there already."""
    if _ERROR_FILE not in environ or Path(environ[_ERROR_FILE]).exists():
        return
    path = Path(environ[_ERROR_FILE])
    content = {
        "message": {
            "message": f"{type(error).__name__}: {error}",
            "extraInfo": {
                "py_callstack": "".join(traceback.format_exception(error)),
                "timestamp": str(int(time.time())),
            },
        }
    }
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(content))
        draft.rename(path)
    except OSError as failure:
        sys.stderr.write(f"keepstep: the error cannot be left for the agent: {failure}\n")


def _run(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["-m"]:
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = list(arguments)
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")


def _of_script(trace: TracebackType | None) -> TracebackType | None:
    """Without the frames that lead to it; whole, if it was never reached."""
    ours = (__file__, runpy.__file__)
    inner = trace
    while inner is not None and (
        inner.tb_frame.f_code.co_filename in ours
        or inner.tb_frame.f_code.co_filename.startswith("<frozen runpy")
    ):
        inner = inner.tb_next
    return inner or trace


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(ExitCode.USAGE)
    main(sys.argv[1:])
