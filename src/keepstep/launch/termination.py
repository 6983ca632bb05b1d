"""The last words of a launcher, for whoever asks a scheduler why a node ended."""

import logging
from pathlib import Path

from keepstep.launch.failure import described

logger = logging.getLogger("keepstep.launch")

LONGEST_BYTES = 4096
"""What Kubernetes keeps of a termination message."""


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


def leave_last_words(path: Path, text: str) -> None:
    """In place: a kubelet mounts the very file. Failing to write is logged, and no more."""
    try:
        path.write_text(text)
    except OSError as error:
        logger.warning("--termination-log %s cannot be written: %s", path, error)
