"""``doctor``, ``copy`` and ``gc`` against a real S3 server."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from run_on_disk import RunOnDisk

from keepstep.cli.main import main
from keepstep.commit.lineage import claim_generation
from keepstep.commit.verify import verify_checkpoint
from keepstep.errors import ExitCode
from keepstep.storage.base import KeepsUploads
from keepstep.storage.opening import open_storage
from keepstep.storage.s3_upload import PART_BYTES

Keepstep = Callable[..., tuple[int, str]]


@pytest.fixture
def keepstep(capsys: pytest.CaptureFixture[str]) -> Keepstep:
    def call(*words: str) -> tuple[int, str]:
        code = main(words)
        return code, capsys.readouterr().out

    return call


def test_doctor_finds_nothing_wrong(s3_uri: str, keepstep: Keepstep) -> None:
    code, out = keepstep("doctor", s3_uri, "--json")
    assert code == 0
    verdicts = {probe["probe"]: probe["verdict"] for probe in json.loads(out)["probes"]}
    assert set(verdicts.values()) == {"PASS"}
    assert list(open_storage(s3_uri).list("")) == []


def test_doctor_names_a_wrong_key(
    s3_uri: str, keepstep: Keepstep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the right one")
    code, out = keepstep("doctor", s3_uri)
    assert code == ExitCode.DENIED
    assert "AWS_SECRET_ACCESS_KEY" in out
    assert "not the right one" not in out


def test_a_run_goes_to_s3_and_back(s3_uri: str, tmp_path: Path, keepstep: Keepstep) -> None:
    run = RunOnDisk(tmp_path / "run")
    run.start()
    steps = [run.save(step) for step in (10, 20)]
    assert keepstep("copy", run.uri, s3_uri, "--all")[0] == 0
    assert keepstep("copy", s3_uri, str(tmp_path / "back"), "--all")[0] == 0
    assert keepstep("copy", run.uri, s3_uri, "--all")[1].count("there already") == 2
    back = RunOnDisk(tmp_path / "back")
    assert back.catalog.candidates() == steps[::-1]
    assert back.run_id == run.run_id
    assert [verify_checkpoint(back.storage, step) for step in steps] == [[], []]


def test_gc_aborts_uploads_of_older_generations(s3_uri: str, keepstep: Keepstep) -> None:
    storage = open_storage(s3_uri)
    assert isinstance(storage, KeepsUploads)
    claim_generation(storage, newest_seen=0, world_size=1, resumed_from=None)
    claim_generation(storage, newest_seen=1, world_size=1, resumed_from=None)
    writers = [
        storage.open_writer(f"steps/000000000010-g00000{number}-0123456789ab/x", 2 * PART_BYTES)
        for number in (1, 2)
    ]
    for writer in writers:
        writer.__enter__().write(0, bytes(PART_BYTES))
    assert (
        "1 unfinished upload would be aborted"
        in keepstep("gc", s3_uri, "--uploads", "--dry-run")[1]
    )
    assert "1 unfinished upload aborted" in keepstep("gc", s3_uri, "--uploads")[1]
    (left,) = storage.uploads("")
    assert "-g000002-" in left.key
    assert "0 unfinished uploads aborted" in keepstep("gc", s3_uri, "--uploads")[1]
    storage.abort_upload(left)
