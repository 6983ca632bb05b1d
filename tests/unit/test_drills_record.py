"""Records of drills: what is written is read again, whatever is in it; what is none is refused."""

import gzip
import json
from pathlib import Path

import pytest
from test_drills_judge import DAMAGED, KILLED

from keepstep.commit.layout import CheckpointId
from keepstep.commit.lineage import Generation
from keepstep.drills.catalog import catalog
from keepstep.drills.perform import judged
from keepstep.drills.record import Record, read_record, write_record
from keepstep.drills.remains import Remains
from keepstep.drills.results import Injection
from keepstep.drills.scenario import Drill, Leg
from keepstep.drills.verdicts import INVARIANTS, Standing, Verdict
from keepstep.errors import ConfigError

DRILL = Drill(
    name="mine", family="D1", description="It dies.", strategy="ddp", acts=(Leg(2),), judges=()
)
CLAIMS = (
    Generation(1, "a", 2, "2026-01-01T00:00:00+00:00", None),
    Generation(2, "b", 2, "2026-01-01T00:01:00+00:00", CheckpointId(4, 1, "000001000004")),
)


def remains(num_events: int = 1) -> Remains:
    event = {"event": "samples", "step": 1, "ids": [1], "losses_hex": ["0x1p+0"], "rank": 0}
    return Remains(
        events=({**event, "generation": 1, "time": 1.25},) * num_events,
        claims=CLAIMS,
        checkpoints=KILLED.history.checkpoints,
    )


def full_record(num_events: int = 1) -> Record:
    return Record(
        drill=DRILL,
        seed=3,
        settings={"train.steps": 40, "model.dropout": 0.1, "optim.betas": [0.9, 0.95]},
        began=1.5,
        seconds=2.5,
        injections=(Injection(time=1.0, kind="kill", target="rank 1", detail="write.middle"),),
        results=KILLED.results,
        damages=DAMAGED.damages,
        objects_before={"a": "1"},
        notes={"delays": [1, 2]},
        remains=remains(num_events),
        reference=remains(),
        verdicts=(Verdict("intact", "I3", is_good=True, evidence="every byte"),),
        directory="runs/mine",
    )


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_record(full_record(), tmp_path)
    assert json.loads(path.read_bytes())["format"] == 1
    assert read_record(path) == full_record()
    assert read_record(tmp_path) == full_record()


def test_a_long_record_is_compressed(tmp_path: Path) -> None:
    record = full_record(num_events=20_000)
    path = write_record(record, tmp_path)
    assert path.suffix == ".gz"
    assert json.loads(gzip.decompress(path.read_bytes()))["drill"]["name"] == "mine"
    assert read_record(tmp_path) == record


@pytest.mark.parametrize("drill", catalog(), ids=lambda drill: drill.name)
def test_every_drill_can_be_told_in_a_record(drill: Drill, tmp_path: Path) -> None:
    record = Record(drill=drill)
    assert read_record(write_record(record, tmp_path)) == record


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"format": 99}, "no record of a drill in format 1"),
        ({"seed": "x"}, "no record of a drill: seed"),
        ({"drill": {"acts": [{"act": "os:system"}]}}, "is no act"),
        ({"drill": {"acts": [{"act": "keepstep.drills.scenario:Drill"}]}}, "is no act"),
        ({"drill": {"acts": [{"act": "keepstep.drills.nowhere:X"}]}}, "no act of this version"),
    ],
)
def test_what_is_no_record_is_refused(
    damage: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = write_record(full_record(), tmp_path)
    document = json.loads(path.read_bytes())
    for name, value in damage.items():
        document[name] = {**document[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=message):
        read_record(path)


def test_a_missing_record_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"record\.json"):
        read_record(tmp_path)


def test_a_drill_that_broke_off_has_failed() -> None:
    record = judged(Record(drill=DRILL, broken_off="the job did not end"))
    assert record.outcome == "FAIL"
    assert record.verdicts[0].evidence == "the job did not end"


def test_what_no_judge_looked_at_is_not_taken_for_held() -> None:
    good = Verdict("intact", "I3", is_good=True, evidence="")
    bad = Verdict("same_bits", "I5", is_good=False, evidence="")
    standings = Record(drill=DRILL, verdicts=(good, bad, good)).standings
    assert list(standings) == list(INVARIANTS)
    assert standings["I3"] is Standing.HELD
    assert standings["I5"] is Standing.BROKEN
    assert standings["I9"] is Standing.NOT_EXAMINED
