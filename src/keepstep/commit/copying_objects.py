"""The objects of one checkpoint on their way to another store, every block checked."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from mmap import mmap
from typing import Generic, TypeVar

from keepstep.commit.blocks import FileBlocks
from keepstep.commit.layout import METADATA, index_filename
from keepstep.commit.manifest import Manifest
from keepstep.commit.verified import READ_BYTES, VerifiedFile, calls, open_verified
from keepstep.commit.verify import check_blocks, read_index, read_small
from keepstep.errors import CorruptCheckpointError, ObjectNotFound
from keepstep.storage.base import Storage

THREADS = 8
"""Each has a buffer of 8 MiB."""

T = TypeVar("T")


class ObjectCopier:
    """Copies everything a manifest names, but not the manifest.

    Args:
        progress: Told of bytes that are there, as they come; called from several threads.
    """

    def __init__(
        self,
        source: Storage,
        destination: Storage,
        manifest: Manifest,
        progress: Callable[[int], None],
    ) -> None:
        self._source = source
        self._destination = destination
        self._manifest = manifest
        self._progress = progress
        self._threads = min(
            THREADS, max(source.capabilities.concurrency, destination.capabilities.concurrency)
        )
        self.sent_bytes = 0
        self.kept_bytes = 0

    def copy(self) -> None:
        """Bring every object there.

        *Durability:* all of them are durable once this returns.
        *Raises:* ``CorruptCheckpointError``, ``StorageError``.
        """
        manifest = self._manifest
        ranks = range(manifest.world_size)
        with _missing_is_damage():
            shards = [b for r in ranks for b in read_index(self._source, manifest, r).files]
        small = [METADATA, *map(index_filename, ranks)]
        self._check_vouched({*small, *(blocks.file for blocks in shards)})
        present = {info.key: info.size_bytes for info in self._destination.list(manifest.id.prefix)}
        for blocks in shards:
            self._copy_shard(blocks, present.get(manifest.id.key(blocks.file)))
        for file in small:
            self._copy_small(file, present.get(manifest.id.key(file)))

    def _check_vouched(self, known: set[str]) -> None:
        for record in self._manifest.objects:
            if record.file not in known:
                key = self._manifest.id.key(record.file)
                raise CorruptCheckpointError(f"{key}: no index vouches for it", key=key)

    def _copy_small(self, file: str, size_bytes: int | None) -> None:
        with _missing_is_damage():
            data = read_small(self._source, self._manifest, file)
        key = self._manifest.id.key(file)
        if size_bytes == len(data) and self._destination.get(key) == data:
            self._kept(len(data))
            return
        self._destination.put(key, data)
        self._sent(len(data))

    def _copy_shard(self, blocks: FileBlocks, size_bytes: int | None) -> None:
        key = self._manifest.id.key(blocks.file)
        if size_bytes is not None:
            # The size is no evidence: some stores show an object's full size before its bytes.
            if size_bytes == blocks.size_bytes and self._is_whole_there(blocks):
                self._kept(blocks.size_bytes)
                return
            self._destination.delete([key])
        with ExitStack() as stack:
            with _missing_is_damage():
                file = stack.enter_context(open_verified(self._source, self._manifest, blocks))
            self._send(file, key)
        self.sent_bytes += blocks.size_bytes

    def _is_whole_there(self, blocks: FileBlocks) -> bool:
        return not any(check_blocks(self._destination, self._manifest, blocks))

    def _send(self, file: VerifiedFile, key: str) -> None:
        blocks = file.blocks
        file.check_size()
        with self._destination.open_writer(key, blocks.size_bytes) as writer:

            def send(numbers: range, buffer: memoryview) -> None:
                piece = buffer[: blocks.bytes_in(numbers)]
                file.read(numbers, piece)
                writer.write(numbers.start * blocks.block_bytes, piece)
                self._progress(len(piece))

            pieces = calls(blocks, range(len(blocks.blocks)))
            _on_threads(self._threads, max(READ_BYTES, blocks.block_bytes), pieces, send)

    def _sent(self, size_bytes: int) -> None:
        self.sent_bytes += size_bytes
        self._progress(size_bytes)

    def _kept(self, size_bytes: int) -> None:
        self.kept_bytes += size_bytes
        self._progress(size_bytes)


@contextmanager
def _missing_is_damage() -> Iterator[None]:
    """An object of the source that is not there counts as damaged."""
    try:
        yield
    except ObjectNotFound as error:
        raise CorruptCheckpointError(f"{error.key} is missing", key=error.key) from error


def _on_threads(
    count: int, buffer_bytes: int, items: Iterable[T], work: Callable[[T, memoryview], None]
) -> None:
    """Do ``work`` for all items on some threads, each of which has a buffer of its own.

    *Raises:* what a failing one raised; no further item is begun then.
    """
    remaining = _Remaining(items)

    def labor() -> None:
        buffer = memoryview(mmap(-1, buffer_bytes))  # aligned to pages
        with remaining.given_up_on_errors():
            for item in remaining:
                work(item, buffer)

    with ThreadPoolExecutor(count) as threads:
        laborers = [threads.submit(labor) for _ in range(count)]
        with remaining.given_up_on_errors():
            for laborer in laborers:
                laborer.result()


class _Remaining(Generic[T]):
    """Items that several threads take, each a different one."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)

    @contextmanager
    def given_up_on_errors(self) -> Iterator[None]:
        """Leave nothing to take if the block fails."""
        try:
            yield
        except BaseException:
            with self._lock:
                self._items = iter(())
            raise
