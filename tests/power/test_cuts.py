"""Power cuts at the system calls of a run: every promise is kept, and the run goes on."""

import pytest

from keepstep.testing.block_device import FILE_SYSTEMS, CuttableDisk
from keepstep.testing.power.cut import Weather
from keepstep.testing.power.habits import BROKEN
from keepstep.testing.power.sweep import find_out, points, sweep
from power.disks import disk

_A_FEW = 60
"""Each so many points: enough to notice that something has broken."""


@pytest.mark.parametrize("weather", Weather)
def test_a_cut_at_some_points_is_recovered_from(ext4: CuttableDisk, weather: Weather) -> None:
    start = list(Weather).index(weather) * _A_FEW // len(Weather)
    for outcome in sweep(ext4, points(ext4)[start::_A_FEW], weather):
        assert not outcome.broken, str(outcome)


@pytest.mark.long
@pytest.mark.parametrize("weather", Weather)
@pytest.mark.parametrize("name", FILE_SYSTEMS)
@pytest.mark.timeout(1200)
def test_a_cut_at_every_point_is_recovered_from(name: str, weather: Weather) -> None:
    with disk(name) as cuttable:
        everywhere = points(cuttable)
        outcomes = list(sweep(cuttable, everywhere, weather))
        assert len(outcomes) == len(everywhere) > 300
        assert [str(outcome) for outcome in outcomes if outcome.broken] == []


def test_points_are_the_same_each_time(ext4: CuttableDisk) -> None:
    assert points(ext4) == points(ext4)


@pytest.mark.parametrize("habit", ["never-sync-before-naming", "name-before-sync"])
def test_a_store_that_names_before_it_syncs_is_found_out(ext4: CuttableDisk, habit: str) -> None:
    _, outcome = find_out(ext4, points(ext4)[:20], BROKEN[habit])
    assert outcome is not None


@pytest.mark.long
@pytest.mark.parametrize("habit", BROKEN)
@pytest.mark.parametrize("name", FILE_SYSTEMS)
@pytest.mark.timeout(1200)
def test_a_store_that_syncs_too_little_is_found_out(name: str, habit: str) -> None:
    with disk(name) as cuttable:
        _, outcome = find_out(cuttable, points(cuttable), BROKEN[habit])
    assert outcome is not None
