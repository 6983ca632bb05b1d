"""A load in two halves: planned, which touches nothing, and read.

Between them the ranks of a job can agree that all of them are ready.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.storage import StorageReader

from keepstep.checkpoint.collector import collector_paused
from keepstep.checkpoint.planner import LoadPlanner
from keepstep.errors import InternalError, KeepstepError


@dataclass(frozen=True, slots=True)
class PlannedLoad:
    """What DCP's load does on one rank, up to the reading. *Ranks:* local."""

    reader: StorageReader
    planner: LoadPlanner
    plan: LoadPlan
    template: dict[str, Any]
    """Nested; tensors are read into, values are replaced."""

    @classmethod
    def of(
        cls, template: dict[str, Any], reader: StorageReader, metadata: Metadata
    ) -> "PlannedLoad":
        """Plan to read every entry of ``template``, by the names of ``metadata``.

        *Raises:* ``InternalError``.
        """
        planner = LoadPlanner()
        with _translated(), collector_paused():
            planner.set_up_planner(template, metadata, is_coordinator=True)
            reader.set_up_storage_reader(metadata, is_coordinator=True)
            plan = reader.prepare_local_plan(planner.create_local_plan())
            (plan,) = reader.prepare_global_plan(planner.create_global_plan([plan]))
            return cls(reader, planner, planner.finish_plan(plan), template)

    def read(self) -> None:
        """Read everything that was planned.

        *Raises:* ``CorruptCheckpointError``, ``StorageError``, ``InternalError``.
        """
        with _translated(), collector_paused():
            self.reader.read_data(self.plan, self.planner).wait()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except KeepstepError:
        raise
    except Exception as error:  # DCP's planning and its readers raise anything
        raise InternalError(
            f"DCP could not load what was compared before: {type(error).__name__}: {error}"
        ) from error
