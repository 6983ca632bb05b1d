"""What a store that loses synced data may leave: nothing that is torn is taken for whole."""

from pathlib import Path

import pytest

from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.layout import MANIFEST, generation_key, ledger_key, pin_key
from keepstep.commit.pins import pin, pinned
from keepstep.commit.pruning import Pruner
from keepstep.config.keep import parse_keep
from keepstep.errors import CorruptCheckpointError
from keepstep.observability.ledger import read_ledger
from keepstep.storage.local import LocalStorage
from keepstep.testing.power.diary import Diary
from keepstep.testing.power.job import BytesJob

TORN = [b"", bytes(512), b'{\n "attempt"']


def saved(root: Path) -> BytesJob:
    job = BytesJob(root, Diary(), check=lambda: None)
    for step in (10, 20):
        assert job.save(step) == {}
    return job


@pytest.mark.parametrize("data", TORN)
def test_a_torn_manifest_costs_one_step_and_not_the_run(tmp_path: Path, data: bytes) -> None:
    job = saved(tmp_path)
    newest = Catalog(job.storage).candidates()[0]
    (tmp_path / newest.key(MANIFEST)).write_bytes(data)
    after = BytesJob(tmp_path, Diary(), check=lambda: None)
    assert after.damaged == [newest]
    assert after.resumed_from is not None
    assert after.resumed_from.step == 10
    assert after.save(20) == {}
    statuses = {entry.id: entry.status for entry in Catalog(after.storage).entries()}
    assert statuses[newest] is Status.QUARANTINED
    Pruner(after.storage).prune(parse_keep("last=1"))


@pytest.mark.parametrize("data", TORN)
def test_a_torn_claim_stops_a_start_with_a_remedy(tmp_path: Path, data: bytes) -> None:
    """Only a store that lost what it had synced has one: which commits count is not guessed."""
    saved(tmp_path)
    second = BytesJob(tmp_path, Diary(), check=lambda: None)
    claim = tmp_path / generation_key(second.generation)
    whole = claim.read_bytes()
    claim.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=r"000002\.json.*Restore it.*init_from"):
        BytesJob(tmp_path, Diary(), check=lambda: None)
    claim.write_bytes(whole)
    assert BytesJob(tmp_path, Diary(), check=lambda: None).save(30) == {}


@pytest.mark.parametrize("data", TORN)
def test_a_torn_pin_pins_by_its_name(tmp_path: Path, data: bytes) -> None:
    job = saved(tmp_path)
    oldest = Catalog(job.storage).candidates()[-1]
    pin(job.storage, oldest, "best")
    (tmp_path / pin_key(oldest)).write_bytes(data)
    assert pinned(job.storage) == {oldest}
    Pruner(job.storage).prune(parse_keep("last=1"))
    assert oldest in Catalog(job.storage).candidates()


@pytest.mark.parametrize("tail", [bytes(100), b'{"event":"save","chec', b"\xff\xfe\n", b"7\n"])
def test_a_torn_line_of_a_ledger_is_no_event(tmp_path: Path, tail: bytes) -> None:
    job = saved(tmp_path)
    ledger = tmp_path / ledger_key(1, 0)
    whole = read_ledger(ledger.read_bytes())
    ledger.write_bytes(ledger.read_bytes() + tail)
    assert read_ledger(LocalStorage(tmp_path).get(ledger_key(job.generation, 0))) == whole
    assert len(whole) == 2
