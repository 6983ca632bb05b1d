"""A job that saves bytes, not tensors: the real protocol and store; ranks are threads."""

import mmap
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from keepstep.commit.barrier import CommitBarrier
from keepstep.commit.blocks import FileBlocks, fold_checksums, run_checksums, sha256_digest
from keepstep.commit.catalog import Catalog
from keepstep.commit.index import Frame, RankIndex
from keepstep.commit.layout import (
    METADATA,
    CheckpointId,
    index_filename,
    ledger_key,
    new_attempt,
    shard_filename,
)
from keepstep.commit.lineage import claim_generation
from keepstep.commit.manifest import Manifest, ObjectRecord
from keepstep.commit.protocol import Attempt, Timeline
from keepstep.commit.starting import announced_start
from keepstep.commit.verify import verify_checkpoint
from keepstep.observability.ledger import Ledger
from keepstep.storage.base import Storage
from keepstep.storage.local import LocalStorage
from keepstep.storage.log import open_log
from keepstep.testing.power.turns import Turns
from keepstep.world import World

WORLD_SIZE = 2
_SHARD_BYTES = ((1 << 20) + 100, 20_000)
"""By rank: the first is written past the page cache but for its end, the second through it."""
_PIECE_BYTES = 512 << 10
_PICKLE = b"stock metadata"
_SILENT_SECONDS = 60.0


class Witness(Protocol):
    """Hears what a job has been promised. A promise that is not heard was not made."""

    def claimed(self, generation: int) -> None: ...

    def saving(self, attempt: CheckpointId) -> None: ...

    def committed(self, attempt: CheckpointId) -> None: ...

    def recording(self, checkpoint: str) -> None: ...


def content(step: int, rank: int) -> memoryview:
    """What ``rank`` saves at ``step``, in memory that begins with a page."""
    memory = mmap.mmap(-1, _SHARD_BYTES[rank])
    word = f"step {step} rank {rank};".encode()
    memory.write((word * (len(memory) // len(word) + 1))[: len(memory)])
    return memoryview(memory)


def newest_whole(storage: Storage) -> tuple[CheckpointId | None, list[CheckpointId]]:
    """What a start goes on from; and what it has set aside as damaged on the way there."""
    catalog = Catalog(storage)
    damaged: list[CheckpointId] = []
    for candidate in catalog.candidates():
        if not (damages := verify_checkpoint(storage, candidate)):
            return candidate, damaged
        catalog.quarantine(candidate, str(damages[0]))
        damaged.append(candidate)
    return None, damaged


class BytesJob:
    """One process group, from its start on. Every rank has a store of its own, as processes do.

    Args:
        check: Called between the steps of every rank; what it raises ends that rank.
        seed: Of the order in which ranks get on.
    """

    def __init__(
        self, root: Path, witness: Witness, *, check: Callable[[], None], seed: int = 0
    ) -> None:
        self._stores = [LocalStorage(root) for _ in range(WORLD_SIZE)]
        self._witness = witness
        self._check = check
        self._seed = seed
        self.storage = self._stores[0]
        self.run = Catalog(self.storage).open_run()
        with announced_start(self.storage) as start:
            self.resumed_from, self.damaged = newest_whole(self.storage)
            claim = claim_generation(
                self.storage,
                newest_seen=start.newest_generation,
                world_size=WORLD_SIZE,
                resumed_from=self.resumed_from,
            )
        self.generation = claim.number
        witness.claimed(claim.number)
        self._ledgers = [
            Ledger(
                open_log(store, ledger_key(claim.number, rank)), generation=claim.number, rank=rank
            )
            for rank, store in enumerate(self._stores)
        ]

    def save(self, step: int) -> dict[int, BaseException]:
        """One attempt by all ranks; what each that did not succeed has raised."""
        attempt = CheckpointId(step, self.generation, new_attempt())
        self._witness.saving(attempt)
        turns = Turns(WORLD_SIZE, self._check, self._seed + step)
        raised: dict[int, BaseException] = {}

        def live(rank: int) -> None:
            try:
                turns.run(rank, lambda: self._save(attempt, rank, turns))
            except BaseException as error:  # noqa: BLE001  # the caller judges
                raised[rank] = error

        threads = [threading.Thread(target=live, args=(rank,)) for rank in range(WORLD_SIZE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._check()
        return raised

    def _save(self, attempt: CheckpointId, rank: int, turns: Turns) -> None:
        storage, world = self._stores[rank], World(rank=rank, world_size=WORLD_SIZE)
        barrier = CommitBarrier(
            turns.store_of(rank),
            world=world,
            scope=attempt.attempt,
            step=attempt.step,
            timeout_seconds=_SILENT_SECONDS,
        )
        one = Attempt(
            BytesParticipant(storage, self.run, attempt, rank),
            id=attempt,
            storage=storage,
            barrier=barrier,
            world=world,
            timeline=Timeline(attempt.step),
        )
        one.prepare()
        one.persist()
        self._witness.committed(attempt)
        self._witness.recording(attempt.name)
        self._ledgers[rank].record("save", checkpoint=attempt.name)
        self._ledgers[rank].close()  # nothing may hold on to the disk; the next line opens it anew


@dataclass
class BytesParticipant:
    """What one rank brings to an attempt: a shard in pieces and its index, as the engine does."""

    storage: Storage
    run: str
    attempt: CheckpointId
    rank: int
    written: list[str] = field(default_factory=list)

    def local_plan(self, *, is_whole: bool) -> bytes:  # noqa: ARG002  # there is but one
        return b"%d" % self.rank

    def global_plan(self, local_plans: list[bytes]) -> list[bytes] | None:
        return local_plans

    def stage(self, plan: bytes, alive: Callable[[], None]) -> None:
        pass

    def write(self, alive: Callable[[], None]) -> bytes:
        alive()
        file, data = shard_filename(self.rank, 0), content(self.attempt.step, self.rank)
        blocks = fold_checksums(file, [run_checksums(0, data)])
        with self.storage.open_writer(self._key(file), len(data)) as writer:
            for offset in range(0, len(data), _PIECE_BYTES):
                writer.write(offset, data[offset : offset + _PIECE_BYTES])
        index = RankIndex(rank=self.rank, frames=(_frame(blocks),), files=(blocks,)).to_bytes()
        self.storage.put(self._key(index_filename(self.rank)), index)
        return f"{blocks.digest} {len(data)} {sha256_digest(index)} {len(index)}".encode()

    def is_vouched_for(self, *, within_seconds: float) -> bool:  # noqa: ARG002  # nothing trains
        return True

    def manifest(self, records: list[bytes]) -> Manifest:
        self.storage.put(self._key(METADATA), _PICKLE)
        objects = [ObjectRecord(METADATA, len(_PICKLE), sha256_digest(_PICKLE))]
        for rank, record in enumerate(records):
            shard_digest, shard_bytes, index_digest, index_bytes = record.decode().split()
            objects.append(ObjectRecord(shard_filename(rank, 0), int(shard_bytes), shard_digest))
            objects.append(ObjectRecord(index_filename(rank), int(index_bytes), index_digest))
        progress: Mapping[str, int] = {"samples": self.attempt.step, "tokens": 0}
        return Manifest(
            run=self.run,
            step=self.attempt.step,
            generation=self.attempt.generation,
            attempt=self.attempt.attempt,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            keepstep_version="0",
            torch_version="0",
            world_size=WORLD_SIZE,
            objects=tuple(objects),
            progress=progress,
        )

    def discard(self) -> None:
        self.storage.delete(self.written)

    def _key(self, file: str) -> str:
        self.written.append(self.attempt.key(file))
        return self.written[-1]


def _frame(blocks: FileBlocks) -> Frame:
    return Frame(
        fqn=blocks.file,
        path=(blocks.file,),
        kind="value",
        file=blocks.file,
        offset=0,
        length=blocks.size_bytes,
        data_offset=0,
        data_bytes=blocks.size_bytes,
        digest=blocks.digest,
    )
