"""Stock ``torch.distributed.checkpoint``, synchronous and in its asynchronous modes."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse

from benchmarks.peers.base import Context, Peer, Pending
from benchmarks.scenario import Scenario


class Dcp(Peer):
    """``dcp.save`` with its defaults, which fsync every file.

    The state dict is made off the clock: what ``get_state_dict`` costs is not held against it.
    """

    name = "dcp"
    caches_plans: ClassVar[bool] = False

    def save(self, directory: Path) -> Path:
        writer = _TimedWriter(directory)
        began = time.perf_counter()
        state_dict_saver.save(
            self.context.state.state_dict(),
            storage_writer=writer,
            planner=DefaultSavePlanner(enable_plan_caching=self.caches_plans),
            no_dist=self.context.is_alone,
        )
        self.notes["plan_seconds"] = writer.write_began - began
        return directory

    def load(self, saved: Path) -> None:
        state_dict_loader.load(
            self.context.state.state_dict(),
            storage_reader=FileSystemReader(saved),
            no_dist=self.context.is_alone,
        )

    def prepare(self) -> None:
        self.context.state.state_dict()


class DcpPlanCached(Dcp):
    """The same with torch's cache of plans."""

    name = "dcp-plan-cached"
    caches_plans = True


class _DcpAsync(Dcp):
    """``dcp.async_save`` with one stager that is kept for all saves."""

    staging: ClassVar[tuple[bool, bool, bool, bool]]
    """Pinned memory, shared memory, a staging thread, copies that do not block."""
    process: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._group = dist.new_group(backend="gloo")
        self._stager = DefaultStager(StagingOptions(*self.staging))

    @classmethod
    def refusal(cls, scenario: Scenario) -> str | None:
        if any((cls.staging[0], *cls.staging[2:])) and scenario.device == "cpu":
            return "DefaultStager wants an accelerator for pinned memory and asynchronous staging"
        return None

    def start(self, directory: Path) -> Pending:
        options: dict[str, Any] = {"async_stager": self._stager}
        if self.process:
            options["async_checkpointer_type"] = AsyncCheckpointerType.PROCESS
        else:
            options["process_group"] = self._group
        return _pending(directory, self.context.state.state_dict(), options)

    save = Peer.save

    def close(self) -> None:
        self._stager.close()


class DcpAsyncThread(_DcpAsync):
    """Stages into ordinary memory, then saves from a thread."""

    name = "dcp-async-thread"
    staging = (False, False, False, False)


class DcpAsyncProcess(_DcpAsync):
    """Stages into shared memory, then saves from a process of its own."""

    name = "dcp-async-process"
    staging = (False, True, False, False)
    process = True


class DcpAsyncPinned(_DcpAsync):
    """Stages into pinned shared memory without blocking: the fastest for CUDA tensors."""

    name = "dcp-async-pinned"
    staging = (True, True, True, True)
    overlaps = True


class DcpAsyncDefault(Dcp):
    """``dcp.async_save(state, checkpoint_id=...)`` and nothing else: a fresh stager each time."""

    name = "dcp-async-default"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._group = dist.new_group(backend="gloo")

    def start(self, directory: Path) -> Pending:
        return _pending(directory, self.context.state.state_dict(), {"process_group": self._group})

    save = Peer.save


class _TimedWriter(FileSystemWriter):
    """Notes when planning was over."""

    write_began = 0.0

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[Any]:
        self.write_began = time.perf_counter()
        return super().write_data(plan, planner)


def _pending(directory: Path, state_dict: dict[str, Any], options: dict[str, Any]) -> Pending:
    response = state_dict_saver.async_save(state_dict, checkpoint_id=str(directory), **options)
    if isinstance(response, AsyncSaveResponse):
        return Pending(
            directory,
            wait=response.upload_completion.result,
            release=cast("Callable[[], object]", response.staging_completion.result),
        )
    return Pending(directory, wait=cast("Future[None]", response).result)
