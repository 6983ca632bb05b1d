"""The last words of a launcher, for whoever asks a scheduler why a node ended."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from keepstep.errors import ExitCode
from keepstep.launch.failure import described

if TYPE_CHECKING:
    from keepstep.launch.supervisor import Job

logger = logging.getLogger("keepstep.launch")

LONGEST_BYTES = 4096
"""What Kubernetes keeps of a termination message."""


@contextmanager
def last_words_left(path: Path | None, job: "Job", environ: Mapping[str, str]) -> Iterator[None]:
    """Leave them there, if anywhere, however the launcher ends."""
    try:
        yield
    except SystemExit as left:  # by intention, with a code
        if isinstance(left.code, int):
            job.exit_code = left.code
        raise
    except BaseException as error:
        job.cause = f"{type(error).__name__}: {error}"
        raise
    finally:
        if path is not None:
            text = last_words(
                ExitCode.ERROR if job.exit_code is None else job.exit_code,
                cause=job.cause,
                committed_step=job.budget.newest_step,
                num_restarts=len(job.restarts),
                uri=environ.get("KEEPSTEP_URI", ""),
            )
            _leave(path, text)


def last_words(
    exit_code: int, *, cause: str, committed_step: int, num_restarts: int, uri: str
) -> str:
    """What a person needs first, at most ``LONGEST_BYTES`` of it; the cause is cut, if anything.

    Args:
        cause: Why this node ended; may have several lines, or none.
        committed_step: The newest that is known here; -1 if there is none.
        uri: Where the run lives; empty if the launcher was not told.
    """
    where = f" of {uri}" if uri else ""
    step = f"step {committed_step}{where}" if committed_step >= 0 else f"none known here{where}"
    lines = [
        f"exit code: {described(exit_code)}",
        f"last commit: {step}",
        f"restarts: {num_restarts}",
        *([f"cause: {cause}"] if cause else []),
    ]
    text = "\n".join(lines) + "\n"
    return text.encode()[:LONGEST_BYTES].decode(errors="ignore")


def _leave(path: Path, text: str) -> None:
    """In place: a kubelet mounts the very file. Failing to write is logged, and no more."""
    try:
        path.write_text(text)
    except OSError as error:
        logger.warning("--termination-log %s cannot be written: %s", path, error)
