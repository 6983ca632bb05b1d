"""The command line of the S3 server: lend it to a command, or serve until a signal."""

# ruff: noqa: T201  # a command line prints

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from keepstep.errors import KeepstepError, exit_code_of
from keepstep.testing.s3_server import S3Server

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with the command's code; 128 + n where signal n ended it."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(_serve(options))
    except KeepstepError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(exit_code_of(error))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What follows ``--`` is the command, untouched."""
    ours, command = split_command(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m keepstep.testing.s3_server",
        usage="%(prog)s [--directory DIR] [--bucket NAME] [-- COMMAND ...]",
        description="Start an S3 server on this machine and run COMMAND with the variables that "
        "lead to it; without COMMAND print them and serve until Ctrl-C.",
    )
    parser.add_argument("--directory", default="runs/s3", help="its data and credentials stay here")
    parser.add_argument("--bucket", help="create this bucket if it is missing")
    options = parser.parse_args(ours)
    options.command = command
    return options


def split_command(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """At the first ``--``."""
    if "--" not in arguments:
        return list(arguments), []
    border = list(arguments).index("--")
    return list(arguments[:border]), list(arguments[border + 1 :])


def client_environ(environ: Mapping[str, str], server: Mapping[str, str]) -> dict[str, str]:
    """``environ`` with the server's variables instead of any other AWS ones.

    A session token or a profile of another account would spoil every signature.
    """
    others = {name: value for name, value in environ.items() if not name.startswith("AWS_")}
    return others | dict(server)


def _serve(options: argparse.Namespace) -> int:
    # Until a command runs, a signal ends us by the ordinary way out, which ends the server.
    for number in _PASSED_ON:
        signal.signal(number, _leave)
    with S3Server(options.directory) as server:
        if options.bucket:
            server.create_bucket(options.bucket)
        if options.command:
            return _run(options.command, client_environ(os.environ, server.environ()))
        for name, value in server.environ().items():
            print(f"export {name}={shlex.quote(value)}")
        sys.stdout.flush()
        signal.pause()
    return 0


def _run(command: Sequence[str], environ: Mapping[str, str]) -> int:
    try:
        process = subprocess.Popen(command, env=environ)  # noqa: S603  # what the user typed
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127

    def pass_on(number: int, _: FrameType | None) -> None:
        # A terminal has already sent Ctrl-C to the command: it shares our process group.
        if not (number == signal.SIGINT and sys.stdin.isatty()):
            process.send_signal(number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    status = process.wait()
    return 128 - status if status < 0 else status


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(0 if number in (signal.SIGINT, signal.SIGTERM) else 128 + number)
