"""Agreement: whatever any rank says counts on all of them, also if only one has anything new."""

from keepstep.elastic.control_group import ControlGroup
from keepstep.world import World
from rank_processes import RunRanks

_SAID = [
    [[0, 0, -9], [0, 0, -9]],
    [[0, 0, -9], [0, 0, -9]],
    [[0, 0, -9], [0, 1, -7]],  # one rank has news
    [[0, 0, -9], [0, 1, -7]],
    [[2, 0, -9], [0, 1, -7]],  # the other one has
    [[0, 0, -9], [0, 0, -9]],  # both take it back
    [[0, 0, -9], [0, 0, -9]],
]


def _largest(rank: int, world_size: int) -> list[list[int]]:
    control = ControlGroup(World(rank=rank, world_size=world_size), timeout_seconds=60)
    found = []
    for said in _SAID:
        found.append(control.largest(said[rank]))
        assert control.largest([rank]) == [world_size - 1], "fewer values in between"
        found[-1].append(0)  # what was returned is the caller's
    control.close()
    return found


def test_the_largest_of_each_value_is_found_whoever_changes_it(run_ranks: RunRanks) -> None:
    expected = [[*(max(pair) for pair in zip(*said, strict=True)), 0] for said in _SAID]
    assert run_ranks(2, _largest, 2) == [expected, expected]
