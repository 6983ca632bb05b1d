"""A restore that is broken on purpose fails its drill, which says what is wrong, and where."""

import sys
from pathlib import Path

import pytest

from keepstep.drills.catalog import SABOTAGED, select
from keepstep.drills.perform import Ground
from keepstep.drills.sabotage import SABOTAGES
from keepstep.train import sabotage

pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(sys.platform != "linux", reason="drills read /proc"),
]

_NAMES = {
    "moment": r"rank 1: optim.state.blocks.0.attention.qkv.weight.exp_avg ",
    "layer": "rank 0: model.blocks.1.mlp.down.weight ",
    "rng": "rank 1: ranks.00001.rng.torch ",
    "sampler": "rank 0: progress.samples was restored as 181, saved as 180",
    "schedule": "rank 0: optim.param_groups.0.lr ",
    "older-shard": "rank 1: model.blocks.0.attention.out.weight ",
}


def test_each_sabotage_has_a_deed_and_a_name() -> None:
    assert set(SABOTAGES) == set(sabotage.SABOTAGES) == set(_NAMES)


@pytest.mark.long
@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotage_is_found_out(name: str, tmp_path: Path) -> None:
    (drill,) = select((SABOTAGED,))
    record = Ground(tmp_path, sabotage=name).perform(drill)
    (verdict,) = (v for v in record.verdicts if v.judge == "restored_exactly")
    assert not verdict.is_good
    assert verdict.evidence.startswith("first difference at step 15, ")
    assert _NAMES[name] in verdict.evidence
    assert record.outcome == "FAIL"
