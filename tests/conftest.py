"""Fixtures of all tests."""

import pytest

from rank_processes import RunRanks, run_in_ranks

pytest_plugins = ["s3_fixtures"]


@pytest.fixture
def run_ranks() -> RunRanks:
    """``run_ranks(world_size, function, *args)``: what ``function(rank, *args)`` returns, by rank.

    Each rank is a process of its own, in a gloo process group. An exception on any rank fails the
    test with that rank's traceback.
    """
    return run_in_ranks
