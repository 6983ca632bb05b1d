"""Fixtures of all tests."""

import logging
import signal
from collections.abc import Iterator

import pytest

from rank_processes import RunRanks, run_in_ranks

pytest_plugins = ["s3_fixtures"]


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Launchers handle signals and print logs: in this process only as long as a test lasts."""
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1]
    handlers = {number: signal.getsignal(number) for number in numbers}
    logger = logging.getLogger("keepstep")
    level, propagates, printers = logger.level, logger.propagate, list(logger.handlers)
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    logger.setLevel(level)
    logger.propagate, logger.handlers = propagates, printers


@pytest.fixture
def run_ranks() -> RunRanks:
    """``run_ranks(world_size, function, *args)``: what ``function(rank, *args)`` returns, by rank.

    Each rank is a process of its own, in a gloo process group. An exception on any rank fails the
    test with that rank's traceback.
    """
    return run_in_ranks
