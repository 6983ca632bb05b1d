"""A worker without torch, which starts at once: ``light_worker.py STEPS DEED[@RANK[@RESTART]]``.

There may be several deeds. They are done after step 3, by all ranks or one, in all incarnations or
one. Where nobody does anything, all ranks end well.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from keepstep.elastic.watchdog import WatchdogPolicy, installed
from keepstep.errors import CoordinationError, FencedError, StorageUnavailable

RANK = int(os.environ["RANK"])
RESTART = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
AT_STEP = 3
ERRORS = {
    "raise": ValueError("the data of step 4 are poisoned"),
    "fence": FencedError("a newer generation owns the run"),
    "store": StorageUnavailable("no answer"),
}


def main() -> None:
    steps, *deeds = sys.argv[1:]
    with Path(f"started-{RANK}-{RESTART}").open("w") as note:
        note.write(str(os.getpid()))
    watchdog = installed()
    watchdog.policy = WatchdogPolicy(floor_seconds=0.3, unlearned_seconds=20)
    watchdog.begin("first step")
    for step in range(1, int(steps) + 1):
        time.sleep(0.02)
        watchdog.tick(step)
        if step == AT_STEP:
            for deed in deeds:
                name, rank, restart = [*deed.split("@"), "", ""][:3]
                if rank in ("", str(RANK)) and restart in ("", str(RESTART)):
                    do(name, watchdog)
    watchdog.rest()


def do(name: str, watchdog) -> None:
    match name:
        case "commit":
            watchdog.committed(AT_STEP + RESTART, is_new=True)
        case "raise" | "fence" | "store":
            raise ERRORS[name]
        case "lose":
            while not Path("waiting-1").exists():
                time.sleep(0.02)
            raise CoordinationError("a rank of another node is gone")
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hold":
            ctypes.PyDLL(None).sleep(100)  # with the interpreter lock
        case "loop":
            while True:
                pass
        case "wait":
            watchdog.rest()
            Path(f"waiting-{RANK}").touch()
            time.sleep(100)
        case "obey":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(85))
            do("wait", watchdog)
        case "told":
            watchdog.told()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            sys.exit(int(name))


if __name__ == "__main__":
    main()
