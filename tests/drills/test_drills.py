"""Real jobs under torchrun, killed, damaged, frozen, and compared with uninterrupted ones.

Three run by default, beside the smoke drills of ``make drill``; ``-m drill`` runs all.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keepstep.drills.catalog import catalog
from keepstep.drills.perform import Ground
from keepstep.drills.record import read_record
from keepstep.drills.scenario import Drill

pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(sys.platform != "linux", reason="drills read /proc"),
]

_BY_DEFAULT = {"kill-in-flight-overlap-fsdp", "rescale-hsdp", "zombie-early"}
"""Of sorts that the smoke drills, which CI runs beside the tests, leave out."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    ground = Ground(tmp_path_factory.mktemp("drills"))
    yield ground
    ground.discard_references()


def _parameters() -> Iterator[object]:
    for drill in catalog():
        marks = () if drill.name in _BY_DEFAULT else pytest.mark.long
        yield pytest.param(drill, id=drill.name, marks=marks)


@pytest.mark.parametrize("drill", list(_parameters()))
def test_drill(ground: Ground, drill: Drill) -> None:
    record = ground.perform(drill)
    if record.skipped is not None:
        pytest.skip(record.skipped)
    bad = [verdict for verdict in record.verdicts if not verdict.is_good]
    assert not bad, f"{bad}; see {record.directory}"
    assert len(record.verdicts) == len(drill.judges)
    assert read_record(Path(record.directory or "")) == record
    ground.discard(record)
