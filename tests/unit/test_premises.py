import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from keepstep.commit.layout import CheckpointId
from keepstep.errors import ConfigError, StorageDenied, StorageUnavailable
from keepstep.session.premises import abort_stale_uploads, check_exclusive_create
from keepstep.storage.base import Buffer, ObjectInfo, Upload
from keepstep.testing.memory_storage import MemoryStorage


class Remote(MemoryStorage):
    """A remote store; heedless ones replace what they were asked to create."""

    capabilities = replace(MemoryStorage.capabilities, is_remote=True, append=False)

    def __init__(self, *, is_heedless: bool = False) -> None:
        super().__init__()
        self._is_heedless = is_heedless
        self.writes: list[str] = []
        self.began: list[Upload] = []
        self.is_down = False

    def create(self, key: str, data: Buffer) -> None:
        self.writes.append(key)
        if self._is_heedless:
            self.put(key, data)
        else:
            super().create(key, data)

    def uploads(self, prefix: str) -> tuple[Upload, ...]:
        if self.is_down:
            raise StorageUnavailable("down")
        return tuple(upload for upload in self.began if upload.key.startswith(prefix))

    def abort_upload(self, upload: Upload) -> None:
        self.began.remove(upload)


class ReadOnly(Remote):
    def create(self, key: str, data: Buffer) -> None:
        raise StorageDenied("s3://b: permission refused: grant s3:PutObject there", key=key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return super().list(prefix)


def upload_of(generation: int) -> Upload:
    key = CheckpointId(5, generation, f"{generation:012x}").key("__0_0.distcp")
    return Upload(key, f"id-{generation}", datetime.now(UTC))


def test_a_store_that_creates_exclusively_is_taken_and_left_as_it_was() -> None:
    storage = Remote()
    check_exclusive_create(storage, single_writer=False)
    assert len(set(storage.writes)) == 1
    assert list(storage.list("")) == []


def test_each_probe_has_a_name_of_its_own() -> None:
    storage = Remote()
    check_exclusive_create(storage, single_writer=False)
    check_exclusive_create(storage, single_writer=False)
    assert len(set(storage.writes)) == 2


def test_a_heedless_store_is_refused_with_the_remedy() -> None:
    storage = Remote(is_heedless=True)
    with pytest.raises(ConfigError, match=r"set storage\.single_writer=true") as caught:
        check_exclusive_create(storage, single_writer=False)
    assert storage.uri in str(caught.value)
    assert list(storage.list("")) == []


def test_a_single_writer_is_believed_and_warned(caplog: pytest.LogCaptureFixture) -> None:
    storage = Remote(is_heedless=True)
    with caplog.at_level(logging.WARNING, logger="keepstep.session"):
        check_exclusive_create(storage, single_writer=True)
    assert "two jobs at once could replace each other's commits" in caplog.text


def test_a_directory_is_not_probed() -> None:
    storage = MemoryStorage()
    check_exclusive_create(storage, single_writer=False)
    assert list(storage.list("")) == []


def test_what_else_is_wrong_with_the_store_is_told_as_it_is() -> None:
    with pytest.raises(StorageDenied, match="grant s3:PutObject"):
        check_exclusive_create(ReadOnly(), single_writer=False)


def test_uploads_of_earlier_generations_are_aborted_and_no_others() -> None:
    storage = Remote()
    foreign = Upload("steps/not-an-attempt/x", "id", datetime.now(UTC))
    storage.began = [upload_of(1), foreign, upload_of(2), upload_of(3), upload_of(4)]
    abort_stale_uploads(storage, 3)
    assert storage.began == [foreign, upload_of_same(storage, 3), upload_of_same(storage, 4)]


def upload_of_same(storage: Remote, generation: int) -> Upload:
    (found,) = [upload for upload in storage.began if upload.id == f"id-{generation}"]
    return found


def test_a_sweep_that_fails_is_logged_and_training_starts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = Remote()
    storage.began = [upload_of(1)]
    storage.is_down = True
    with caplog.at_level(logging.WARNING, logger="keepstep.session"):
        abort_stale_uploads(storage, 2)
    assert "unfinished uploads may be left" in caplog.text


def test_a_store_without_uploads_has_none_to_abort() -> None:
    abort_stale_uploads(MemoryStorage(), 2)
