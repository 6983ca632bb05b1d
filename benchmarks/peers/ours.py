"""keepstep, through its public API."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Literal

import keepstep
from benchmarks.peers.base import Context, Peer, Pending
from keepstep.commit.layout import ledger_key

_Mode = Literal["sync", "async", "overlap"]
_NEVER = 10**9
"""Steps between saves of ``tick``: only ``save`` saves here."""


class Keepstep(Peer):
    """Synchronous saves with checksums; verified loads."""

    name = "keepstep"
    mode: ClassVar[_Mode] = "sync"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._run = context.directory / f"run-{self.name}"
        self._open = ExitStack()
        self._session: keepstep.Session | None = None

    def prepare(self) -> None:
        """A training step goes by, and the save before it is taken note of."""
        if self._session is not None:
            self._session.tick()

    def save(self, directory: Path) -> Path:
        saved = self._tracking().save()
        checkpoint = saved.committed()
        self.notes |= {f"{phase}_seconds": taken for phase, taken in saved.seconds.items()}
        if self.mode == "sync":  # nothing is copied: until the first byte may be written
            self.notes["plan_seconds"] += self.notes["stage_seconds"]
        return self._run / checkpoint.prefix

    def load(self, saved: Path) -> None:
        state = self.context.state
        keepstep.load(saved, model=state.model, optim=state.optimizer)

    def close(self) -> None:
        self._open.close()

    def summary(self) -> dict[str, float]:
        """How often it allocated host memory from its second save on."""
        if self._session is None:
            return {}
        ledger = ledger_key(self._session.generation, self.context.ranks.rank)
        lines = (self._run / ledger).read_text().splitlines()
        counts = [json.loads(line).get("allocations") for line in lines]
        of_saves = [count for count in counts if count is not None]
        return {"grown_allocations": of_saves[-1] - of_saves[0]}

    def _run_uri(self) -> str:
        return str(self._run)

    def _tracking(self) -> keepstep.Session:
        """The session of all saves, opened by the first."""
        if self._session is None:
            session = self._open.enter_context(
                keepstep.open(self._run_uri(), every=_NEVER, mode=self.mode)
            )
            state = self.context.state
            session.track(model=state.model, optim=state.optimizer).restore()
            session.tick()
            self._session = session
        return self._session


class KeepstepReadOnce(Keepstep):
    """Loads by resuming the run; what all ranks hold is read by one of them and broadcast."""

    name = "keepstep-read-once"

    def load(self, saved: Path) -> None:
        run = saved.parent.parent
        with keepstep.open(str(run), every=_NEVER, resume="must", read_once=True) as session:
            state = self.context.state
            session.track(model=state.model, optim=state.optimizer).restore()


class KeepstepAsync(Keepstep):
    """The caller goes on when its tensors are copied."""

    name = "keepstep-async"
    mode: ClassVar[_Mode] = "async"

    save = Peer.save

    def start(self, directory: Path) -> Pending:
        session = self._tracking()
        saved = session.save()

        def release() -> None:
            with session.guard():
                pass

        return Pending(self._run / saved.checkpoint.prefix, wait=saved.committed, release=release)


class KeepstepOverlap(KeepstepAsync):
    """The caller goes on at once, and waits for the copy before its optimizer step."""

    name = "keepstep-overlap"
    mode = "overlap"
    overlaps = True
