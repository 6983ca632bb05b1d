"""Reading once: what several ranks need, one of them reads, and the others get it from there.

Replicated tensors, and shards that several ranks hold, would otherwise be fetched from storage once
per rank. The unit is the checksum block: whoever receives one verifies it as if it had read it.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

from keepstep.checkpoint.division import Bucket, Division, divide
from keepstep.checkpoint.parallel import for_each
from keepstep.checkpoint.pieces import Buffers
from keepstep.checkpoint.planned import PlannedLoad
from keepstep.checkpoint.reader import ShardReader
from keepstep.checkpoint.reads import Reads
from keepstep.commit.blocks import FileBlocks
from keepstep.commit.verified import bad_blocks, calls
from keepstep.errors import CoordinationError, KeepstepError

_BUCKET_BYTES = 32 << 20
_IN_FLIGHT_BYTES = 256 << 20
"""Over all buckets that a rank holds at once: two of its own and one from every other rank."""


class Peers(Protocol):
    """What reading together needs of the ranks; ``elastic.ControlGroup`` is one."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]: ...

    def attempt(self, act: Callable[[], Any]) -> dict[int, KeepstepError]: ...

    def exchange(
        self, sends: Iterable[tuple[int, memoryview]], receives: Iterable[tuple[int, memoryview]]
    ) -> None: ...


def read_together(
    planned: PlannedLoad, reader: ShardReader, peers: Peers
) -> dict[int, KeepstepError]:
    """Read what every rank planned, each block from storage by one rank only.

    Returns the errors by rank, the same on every rank; if there are any, the destinations are
    partly overwritten. Memory in use is bounded, however much is shared.

    *Ranks:* collective. *Raises:* ``CoordinationError`` if a rank is lost.
    """
    found: list[Reads] = []
    problems = peers.attempt(lambda: found.append(reader.reads(planned.plan, planned.planner)))
    if problems:
        return problems
    wanted = found[0]
    bucket_bytes = min(_BUCKET_BYTES, _IN_FLIGHT_BYTES // (peers.world_size + 1))
    largest = max((blocks.block_bytes for blocks in reader.files.values()), default=1)
    division = divide(peers.gather(wanted.needed), bucket_blocks=max(1, bucket_bytes // largest))
    with _Relay(reader, wanted, division, peers) as relay:
        for number in range(division.num_rounds):
            problems = peers.attempt(partial(relay.prepare, number))
            if problems:
                return problems
            relay.exchange(number)
        return peers.attempt(relay.finish)


class _Relay:
    """One rank's part in passing buckets around. While one is on its way, the next is read."""

    def __init__(self, reader: ShardReader, reads: Reads, division: Division, peers: Peers) -> None:
        self._reader = reader
        self._reads = reads
        self._division = division
        self._peers = peers
        sizes = [self._size(bucket) for own in division.buckets for bucket in own]
        self._buffers = Buffers(max(sizes, default=0))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="keepstep-relay")
        self._next: Future[memoryview] | None = None
        self._arrived: list[tuple[Bucket, memoryview]] = []
        self._read_ahead(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def prepare(self, number: int) -> None:
        """Have this round's own bucket ready, and put away what the round before brought."""
        if number == self._division.num_rounds // 2 and self._reads.has_tensors:
            self._reader.pass_middle()
        self._put_away()
        if self._next is not None:
            self._next.result()

    def exchange(self, number: int) -> None:
        """Send the own bucket and receive the others'. *Ranks:* collective."""
        rank = self._peers.rank
        sends: list[tuple[int, memoryview]] = []
        receives: list[tuple[int, memoryview]] = []
        own = self._next.result() if self._next is not None else None
        self._read_ahead(number + 1)
        for bucket in self._division.round(number):
            size_bytes = self._size(bucket)
            if bucket.owner == rank and own is not None:
                sends += [(holder, own[:size_bytes]) for holder in bucket.holders if holder != rank]
                self._arrived.append((bucket, own))
            elif rank in bucket.holders:
                buffer = self._buffers.take(size_bytes)
                receives.append((bucket.owner, buffer[:size_bytes]))
                self._arrived.append((bucket, buffer))
        self._peers.exchange(sends, receives)

    def finish(self) -> None:
        """Put away the last buckets, and read what only this rank needs."""
        self._put_away()
        self._reader.read(self._division.alone[self._peers.rank], self._reads)
        self._reads.finish()

    def _read_ahead(self, number: int) -> None:
        own = self._division.buckets[self._peers.rank]
        self._next = self._pool.submit(self._read, own[number]) if number < len(own) else None

    def _read(self, bucket: Bucket) -> memoryview:
        """The blocks of a bucket, one after the other, from storage and good."""
        buffer = self._buffers.take(self._size(bucket))
        with ExitStack() as stack:
            names = dict.fromkeys(part.file for part in bucket.parts)
            opened = {file: stack.enter_context(self._reader.open(file)) for file in names}

            def read_call(call: _Call) -> None:
                bytes_read = opened[call.file].read(call.numbers, call.data)
                self._reader.note(call.file, call.numbers, bytes_read)

            tasks = list(self._calls(bucket, buffer))
            for_each(tasks, read_call, num_threads=self._reader.num_threads)
        return buffer

    def _put_away(self) -> None:
        """Give the blocks that arrived to the pieces that want bytes of them."""
        for bucket, buffer in self._arrived:
            for call in self._calls(bucket, buffer):
                if bucket.owner != self._peers.rank:
                    _check_received(self._reader.files[call.file], call, bucket.owner)
                self._reads.files[call.file].take(call.numbers, call.data)
            self._buffers.give(buffer)
        self._arrived.clear()

    def _calls(self, bucket: Bucket, buffer: memoryview) -> Iterator["_Call"]:
        """The parts of a bucket, as far as one call each, and where they lie in its buffer."""
        for part in bucket.parts:
            blocks = self._reader.files[part.file]
            for numbers in calls(blocks, part.numbers):
                count = blocks.bytes_in(numbers)
                yield _Call(part.file, numbers, buffer[:count])
                buffer = buffer[count:]

    def _size(self, bucket: Bucket) -> int:
        """Bytes of all its blocks."""
        files = self._reader.files
        return sum(files[part.file].bytes_in(part.numbers) for part in bucket.parts)


@dataclass(frozen=True, slots=True)
class _Call:
    """Consecutive blocks, and their bytes."""

    file: str
    numbers: range
    data: memoryview


def _check_received(blocks: FileBlocks, call: _Call, owner: int) -> None:
    for number in bad_blocks(blocks, call.numbers, call.data):
        raise CoordinationError(
            f"{call.file} block {number} was good when rank {owner} read it and arrived damaged: "
            "the network or the memory of one of the two hosts is at fault"
        )
