"""``keepstep doctor`` on stores that lack something."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from keepstep.cli import doctor
from keepstep.errors import (
    ExitCode,
    ObjectExists,
    StorageDenied,
    StorageUnavailable,
    StoreNotFound,
)
from keepstep.storage.base import Buffer, Capabilities, ObjectInfo
from keepstep.storage.checkup import Verdict, check_up, worst_exit_code
from keepstep.storage.local import LocalStorage
from keepstep.storage.probe import creates_exclusively
from keepstep.testing.memory_storage import MemoryStorage

Keepstep = Callable[..., tuple[int, str, str]]


class Replacing(MemoryStorage):
    """Takes the second create for a put."""

    def create(self, key: str, data: Buffer) -> None:
        self.put(key, data)


class Stale(MemoryStorage):
    """Its readers see what was there first."""

    def get(self, key: str) -> bytes:
        self.first = getattr(self, "first", {})
        return self.first.setdefault(key, super().get(key))


class Forgetful(MemoryStorage):
    """Its listings lag behind."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(())


class Undeleting(MemoryStorage):
    def delete(self, keys: Any) -> None:
        """Answers, and does nothing."""


class ReadOnly(MemoryStorage):
    def put(self, key: str, data: Buffer) -> None:
        raise StorageDenied("permission refused: grant s3:PutObject there", key=key)


class Silent(MemoryStorage):
    def put(self, key: str, data: Buffer) -> None:
        raise StorageUnavailable("no answer", key=key)


class Nowhere(MemoryStorage):
    def put(self, key: str, data: Buffer) -> None:
        raise StoreNotFound("there is no such bucket", key=key)


class WithClock(MemoryStorage):
    def __init__(self, skew: timedelta | None) -> None:
        super().__init__()
        self.skew = skew

    def server_time(self, key: str) -> datetime | None:
        return None if self.skew is None else datetime.now(UTC) + self.skew


def verdicts(storage: MemoryStorage, **settings: bool) -> dict[str, Verdict]:
    return {finding.probe: finding.verdict for finding in check_up(storage, **settings)}


def test_a_good_store_passes_and_keeps_nothing() -> None:
    storage = MemoryStorage()
    found = verdicts(storage)
    assert found.pop("clock") is Verdict.SKIP
    assert set(found.values()) == {Verdict.PASS}
    assert list(storage.list("")) == []


@pytest.mark.parametrize(
    ("storage", "failed"),
    [
        (Stale(), "overwrite"),
        (Forgetful(), "list"),
        (Undeleting(), "delete"),
        (Replacing(), "create"),
        (ReadOnly(), "put"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_store_lacks_fails(storage: MemoryStorage, failed: str) -> None:
    found = verdicts(storage)
    assert [name for name, verdict in found.items() if verdict is Verdict.FAIL] == [failed]


def test_what_makes_no_sense_is_skipped() -> None:
    found = verdicts(ReadOnly())
    assert found.pop("put") is Verdict.FAIL
    assert set(found.values()) == {Verdict.SKIP}


@pytest.mark.parametrize(
    ("storage", "code"),
    [
        (Replacing(), ExitCode.CONFIG),
        (Nowhere(), ExitCode.CONFIG),
        (ReadOnly(), ExitCode.DENIED),
        (Silent(), ExitCode.STORAGE_UNAVAILABLE),
        (MemoryStorage(), ExitCode.OK),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_failure_has_its_exit_code(storage: MemoryStorage, code: ExitCode) -> None:
    assert worst_exit_code(check_up(storage)) is code


def test_a_single_writer_is_warned_instead() -> None:
    (finding,) = (f for f in check_up(Replacing(), is_single_writer=True) if f.probe == "create")
    assert finding.verdict is Verdict.WARN
    assert "never start two jobs" in finding.sentence


@pytest.mark.parametrize(
    ("skew", "verdict"),
    [
        (None, Verdict.SKIP),
        (timedelta(0), Verdict.PASS),
        (timedelta(seconds=-30), Verdict.PASS),
        (timedelta(minutes=-5), Verdict.WARN),
        (timedelta(minutes=5), Verdict.WARN),
    ],
)
def test_clocks_are_compared(skew: timedelta | None, verdict: Verdict) -> None:
    assert verdicts(WithClock(skew))["clock"] is verdict


def test_a_store_that_replaces_does_not_create_exclusively() -> None:
    storage = Replacing()
    assert creates_exclusively(MemoryStorage())
    assert not creates_exclusively(storage)
    assert list(storage.list("")) == []


def test_a_store_that_refuses_and_replaces_does_not_either() -> None:
    class Lying(MemoryStorage):
        def create(self, key: str, data: Buffer) -> None:
            is_taken = any(info.key == key for info in self.list(""))
            self.put(key, data)
            if is_taken:
                raise ObjectExists("the name is taken", key=key)

    assert not creates_exclusively(Lying())


def test_looking_first_is_no_exclusive_create() -> None:
    class Looking(MemoryStorage):
        capabilities = Capabilities(exclusive_create=False, append=False)

    assert not creates_exclusively(Looking())


def refusing(status: int) -> MemoryStorage:
    """Refuses conditional writes with this status, as S3 clients report it."""

    class Refusing(MemoryStorage):
        def create(self, key: str, data: Buffer) -> None:
            response = {"Error": {}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise StorageUnavailable("put failed", key=key) from ClientError(response, "PutObject")

    return Refusing()


def test_not_implemented_is_an_answer_and_an_outage_is_none() -> None:
    assert not creates_exclusively(refusing(501))
    with pytest.raises(StorageUnavailable):
        creates_exclusively(refusing(503))


def test_doctor_prints_a_table_and_leaves_nothing(tmp_path: Path, keepstep: Keepstep) -> None:
    code, out, err = keepstep("doctor", str(tmp_path / "run"))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == str(tmp_path / "run")
    assert [line.split()[0] for line in lines[1:]] == ["PASS"] * 7 + ["SKIP", "PASS"]
    assert "32 MiB written at" in lines[-1]
    assert list((tmp_path / "run").iterdir()) == []


def test_doctor_leaves_what_others_are_trying_out(tmp_path: Path, keepstep: Keepstep) -> None:
    LocalStorage(tmp_path).put("probe/another", b"")
    assert keepstep("doctor", str(tmp_path))[0] == 0
    assert [path.name for path in (tmp_path / "probe").iterdir()] == ["another"]


def test_a_start_that_tries_something_out_while_doctor_tidies_is_not_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, doctors = LocalStorage(tmp_path), LocalStorage(tmp_path)
    make = LocalStorage._make_durable_directory
    made = []

    def make_and_lose(self: LocalStorage, directory: Path) -> None:
        make(self, directory)
        made.append(directory)
        if len(made) == 1:
            doctors.remove_directory("probe/")

    monkeypatch.setattr(LocalStorage, "_make_durable_directory", make_and_lose)
    assert creates_exclusively(storage)
    assert len(made) > 2, "the directory was lost, and made again"


@pytest.mark.parametrize(
    ("words", "code", "verdict"), [((), 78, "FAIL"), (("--single-writer",), 0, "WARN")]
)
def test_doctor_judges_a_store_without_exclusive_create(
    keepstep: Keepstep,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    verdict: str,
) -> None:
    monkeypatch.setattr(doctor, "open_storage", lambda *_, **__: Replacing())
    found, out, _ = keepstep("doctor", "s3://bucket/run", "--json", *words)
    document = json.loads(out)
    (create,) = (probe for probe in document["probes"] if probe["probe"] == "create")
    assert (found, document["exit_code"], create["verdict"]) == (code, code, verdict)
    assert "two jobs at once could commit over each other" in create["sentence"]


def test_doctor_refuses_a_scheme_that_nobody_knows(keepstep: Keepstep) -> None:
    code, out, err = keepstep("doctor", "gopher://x")
    assert (code, out) == (ExitCode.CONFIG, "")
    assert "'gopher'" in err
