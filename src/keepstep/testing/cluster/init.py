"""A script, and the stand-in for ``tini``: a process 1 that hands signals on and reaps.

``python -I -S init.py [options] -- COMMAND...`` ends as tini does: with the command's exit code, or
128 + the number of the signal that ended it.
"""

import os
import signal
import sys

_HANDED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def main() -> None:
    words = sys.argv[1:]
    words = words[words.index("--") + 1 :] if "--" in words else words
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_HANDED_ON, signal.SIGCHLD))
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(words[0], words)  # noqa: S606  # that is what it is for
    while True:
        number = signal.sigwait((*_HANDED_ON, signal.SIGCHLD))
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        code = _reaped(child)
        if code is not None:
            os._exit(code if code >= 0 else 128 - code)


def _reaped(child: int) -> int | None:
    """Take note of all that have ended; the child's own exit code, if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
