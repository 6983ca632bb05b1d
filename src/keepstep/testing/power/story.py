"""What a run does with its disk in the course of its life, chapter by chapter."""

from collections.abc import Callable
from pathlib import Path

from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import CheckpointId
from keepstep.commit.pins import pin, pinned, unpin
from keepstep.commit.pruning import Pruner
from keepstep.commit.retention import Extent
from keepstep.commit.rollback import roll_back
from keepstep.commit.starting import announced_start
from keepstep.config.keep import parse_keep
from keepstep.errors import InternalError
from keepstep.storage.local import LocalStorage
from keepstep.testing.power.diary import Diary
from keepstep.testing.power.job import BytesJob

_LAST = parse_keep("last=1")


class Story:
    """Two ranks start, save, are restarted; a person pins, prunes and rolls back.

    Args:
        diary: Learns what was promised, and in which chapter.
        check: Raises once the power is off.
    """

    def __init__(self, root: Path, diary: Diary, *, check: Callable[[], None], seed: int) -> None:
        self._root = root
        self._diary = diary
        self._check = check
        self._seed = seed
        self._job: BytesJob | None = None

    def tell(self) -> None:
        """From the first start to the last prune."""
        self._chapter("start", self._start)
        self._chapter("save", lambda: self._save(10))
        self._chapter("save", lambda: self._save(20))
        self._chapter("pin", lambda: self._pin(10))
        self._chapter("save", lambda: self._save(30))
        self._chapter("prune", lambda: self._prune(Extent()))
        self._chapter("restart", self._start)
        self._chapter("save", lambda: self._save(40))
        self._chapter("rollback", lambda: self._roll_back(30))
        self._chapter("restart", self._start)
        self._chapter("save", lambda: self._save(40))
        self._chapter("unpin", self._unpin)
        self._chapter("prune", lambda: self._prune(Extent(superseded=True)))

    def _chapter(self, name: str, happen: Callable[[], None]) -> None:
        self._diary.chapter = name
        happen()
        self._check()

    def _start(self) -> None:
        self._job = BytesJob(self._root, self._diary, check=self._check, seed=self._seed)

    def _save(self, step: int) -> None:
        assert self._job is not None
        for error in self._job.save(step).values():
            raise error

    def _pin(self, step: int) -> None:
        checkpoint = self._find(step)
        pin(LocalStorage(self._root), checkpoint, "best")
        self._diary.pinned(checkpoint)

    def _unpin(self) -> None:
        storage = LocalStorage(self._root)
        for checkpoint in pinned(storage):
            self._diary.unpinning(checkpoint)
            unpin(storage, checkpoint)
            self._diary.unpinned(checkpoint)

    def _prune(self, extent: Extent) -> None:
        pruner = Pruner(LocalStorage(self._root))
        self._diary.doomed |= {decision.id for decision in pruner.plan(_LAST, extent).removed}
        pruner.prune(_LAST, extent)
        self._diary.pruned()

    def _roll_back(self, step: int) -> None:
        storage = LocalStorage(self._root)
        with announced_start(storage) as start:
            head = self._find(step)
            self._diary.next_head = head
            claimed = roll_back(storage, head, start)
            self._diary.rolled_back(claimed.generation, head)

    def _find(self, step: int) -> CheckpointId:
        for entry in Catalog(LocalStorage(self._root)).candidates():
            if entry.step == step:
                return entry
        raise InternalError(f"the story has lost its step {step}")
