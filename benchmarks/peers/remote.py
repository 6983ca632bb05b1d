"""The same work over S3: keepstep, stock DCP through fsspec, and what the server can do at all."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import botocore.session
from botocore.config import Config
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

import keepstep
from benchmarks.peers.base import Context, Peer
from benchmarks.peers.ours import Keepstep
from benchmarks.scenario import Scenario

BUCKET = "benchmarks"

_PART_BYTES = 8 << 20


class RemoteKeepstep(Keepstep):
    """Synchronous saves with checksums; verified loads."""

    name = "keepstep-s3"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._uri = _uri(context.directory / self.name)

    def save(self, directory: Path) -> Path:
        checkpoint = self._tracking().save().committed()
        return Path(checkpoint.prefix)

    def load(self, saved: Path) -> None:
        state = self.context.state
        keepstep.load(f"{self._uri}/{saved}", model=state.model, optim=state.optimizer)

    def summary(self) -> dict[str, float]:
        return {}

    def _run_uri(self) -> str:
        return self._uri


class RemoteDcp(Peer):
    """``dcp.save`` and ``dcp.load`` through ``FsspecWriter`` and ``FsspecReader``, over s3fs."""

    name = "dcp-s3fs"

    @classmethod
    def refusal(cls, scenario: Scenario) -> str | None:
        return None if find_spec("s3fs") else "s3fs is not installed"

    def save(self, directory: Path) -> Path:
        state_dict_saver.save(
            self.context.state.state_dict(),
            storage_writer=FsspecWriter(_uri(directory)),
            no_dist=self.context.is_alone,
        )
        return directory

    def load(self, saved: Path) -> None:
        state_dict_loader.load(
            self.context.state.state_dict(),
            storage_reader=FsspecReader(_uri(saved)),
            no_dist=self.context.is_alone,
        )

    def prepare(self) -> None:
        self.context.state.state_dict()


class RemoteLimit(Peer):
    """Multipart puts and ranged gets of as many bytes, by several threads of each rank."""

    name = "limit-s3-8"
    is_limit = True
    threads: ClassVar[int] = 8

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        share = context.state.local_bytes
        if context.is_replicated:
            share //= context.ranks.count
        self._parts = range(max(1, share // _PART_BYTES))
        self._part = os.urandom(_PART_BYTES)  # a server may compress what is all the same
        self._client: Any = botocore.session.get_session().create_client(
            "s3", config=Config(s3={"payload_signing_enabled": False}, max_pool_connections=16)
        )

    def save(self, directory: Path) -> Path:
        key = self._key(directory, self.context.ranks.rank)
        upload = self._client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]

        def put(number: int) -> dict[str, Any]:
            answer = self._client.upload_part(
                Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number + 1, Body=self._part
            )
            return {"PartNumber": number + 1, "ETag": answer["ETag"]}

        parts = {"Parts": self._of_all(put)}
        self._client.complete_multipart_upload(
            Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload=parts
        )
        self.context.ranks.wait()
        return directory

    def load(self, saved: Path) -> None:
        mine = [self.context.ranks.rank]
        for rank in range(self.context.ranks.count) if self.context.is_replicated else mine:
            self._of_all(partial(self._get, self._key(saved, rank)))

    def _get(self, key: str, number: int) -> int:
        start = number * _PART_BYTES
        asked = f"bytes={start}-{start + _PART_BYTES - 1}"
        return len(self._client.get_object(Bucket=BUCKET, Key=key, Range=asked)["Body"].read())

    def _of_all(self, work: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(work, self._parts))

    def _key(self, directory: Path, rank: int) -> str:
        return f"{_name(directory)}/rank-{rank}.bin"


def _uri(directory: Path) -> str:
    return f"s3://{BUCKET}/{_name(directory)}"


def _name(directory: Path) -> str:
    """Unlike that of any other launch: the scratch directory's own name is in it."""
    return f"{directory.parent.parent.name}/{directory.name}".replace("_", "-")
