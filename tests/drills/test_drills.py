"""Real jobs under torchrun, killed, damaged, frozen, and compared with uninterrupted ones.

Those that run by default are one of each sort; ``-m drill`` runs all, in about 12 minutes on two
cores.
"""

import sys
from collections.abc import Iterator

import pytest

from keepstep.drills.catalog import SMOKE, catalog
from keepstep.drills.perform import Ground
from keepstep.drills.scenario import Drill

pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(sys.platform != "linux", reason="drills read /proc"),
]

_ONE_OF_EACH = {
    *SMOKE,
    "kill-publish.middle-ddp",
    "kill-publish.after-fsdp",
    "kill-arrive.before-fsdp",
    "kill-in-flight-async-ddp",
    "kill-in-flight-overlap-fsdp",
    "kill-write.middle-fast-fsdp",
    "kill-write.middle-sync-fsdp",
    "rescale-ddp",
    "damage-flip",
    "damage-delete",
    "damage-all",
    "zombie",
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    ground = Ground(tmp_path_factory.mktemp("drills"))
    yield ground
    ground.discard_references()


def _parameters() -> Iterator[object]:
    for drill in catalog():
        marks = () if drill.name in _ONE_OF_EACH else pytest.mark.long
        yield pytest.param(drill, id=drill.name, marks=marks)


@pytest.mark.parametrize("drill", list(_parameters()))
def test_drill(ground: Ground, drill: Drill) -> None:
    outcome = ground.perform(drill)
    if outcome.skipped is not None:
        pytest.skip(outcome.skipped)
    bad = [verdict for verdict in outcome.verdicts if not verdict.is_good]
    assert not bad, f"{bad}; see {outcome.directory}"
    assert len(outcome.verdicts) == len(drill.judges)
    ground.discard(outcome)
