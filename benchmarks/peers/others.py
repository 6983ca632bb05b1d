"""Other checkpoint systems, where they are installed."""

import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from benchmarks.files import make_durable
from benchmarks.peers.base import Context, Peer, Pending
from benchmarks.peers.dcp import Dcp
from benchmarks.scenario import Scenario

_POLL_SECONDS = 0.01
_DLROVER_TIMEOUT_SECONDS = 120.0


class TorchSnapshot(Peer):
    """``Snapshot.take`` and ``async_take`` of the local tensors; the fsync is ours."""

    name = "torchsnapshot"

    @classmethod
    def refusal(cls, scenario: Scenario) -> str | None:
        del scenario
        return _missing("torchsnapshot")

    def save(self, directory: Path) -> Path:
        from torchsnapshot import Snapshot

        Snapshot.take(str(directory), self._application(), replicated=self._replicated())
        self._finish(directory)
        return directory

    def start(self, directory: Path) -> Pending:
        from torchsnapshot import Snapshot

        taken = Snapshot.async_take(
            str(directory), self._application(), replicated=self._replicated()
        )

        def wait() -> None:
            taken.wait()
            self._finish(directory)

        return Pending(directory, wait=wait)

    def load(self, saved: Path) -> None:
        from torchsnapshot import Snapshot

        Snapshot(str(saved)).restore(self._application())

    def _application(self) -> dict[str, Any]:
        from torchsnapshot import StateDict

        tensors = self.context.state.local_tensors
        return {"state": StateDict(**{f"t{number}": t for number, t in enumerate(tensors)})}

    def _replicated(self) -> list[str]:
        return ["**"] if self.context.is_replicated and not self.context.is_alone else []

    def _finish(self, directory: Path) -> None:
        if self.context.ranks.is_first:
            make_durable(directory)
        self.context.ranks.wait()


class NvidiaFork(Dcp):
    """nvidia-resiliency-ext's DCP writer, forking a process per save that sees memory as it was.

    Its checkpoints are stock DCP's, and so is the load.
    """

    name = "nvrx-fork"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        from nvidia_resiliency_ext.checkpointing.async_ckpt.core import AsyncCallsQueue

        if (
            not torch.cuda.is_available()
        ):  # it synchronizes CUDA without asking whether there is one
            torch.cuda.synchronize = _do_nothing
            torch.cuda.current_device = partial(torch.device, "cpu")  # type: ignore[assignment]
        self._queue = AsyncCallsQueue(persistent=False)

    @classmethod
    def refusal(cls, scenario: Scenario) -> str | None:
        return _missing("nvidia_resiliency_ext")

    save = Peer.save

    def start(self, directory: Path) -> Pending:
        from nvidia_resiliency_ext.checkpointing.async_ckpt.core import AsyncRequest
        from nvidia_resiliency_ext.checkpointing.async_ckpt.filesystem_async import (
            FileSystemWriterAsync,
        )
        from nvidia_resiliency_ext.checkpointing.async_ckpt.state_dict_saver import (
            save_state_dict_async_finalize,
            save_state_dict_async_plan,
        )

        directory.mkdir(parents=True, exist_ok=True)
        writer = FileSystemWriterAsync(str(directory), thread_count=2)
        planned = save_state_dict_async_plan(
            self.context.state.state_dict(), writer, None, 0, planner=DefaultSavePlanner()
        )
        write, preload, arguments = writer.get_save_function_and_args()
        if self.context.scenario.device == "cpu":
            preload = partial(writer.preload_tensors, writer.write_buckets, False)
        finish = partial(save_state_dict_async_finalize, *planned)
        self._queue.schedule_async_request(
            AsyncRequest(write, arguments, [finish], async_fn_kwargs={}, preload_fn=preload)
        )
        return Pending(
            directory,
            wait=partial(self._queue.maybe_finalize_async_calls, blocking=True),
            is_done=lambda: bool(self._queue.maybe_finalize_async_calls(blocking=False)),
        )

    def close(self) -> None:
        self._queue.close()


class DlroverFlash(Peer):
    """dlrover's flash checkpoint: copied into shared memory, written by a saver process.

    It writes without fsync; that is ours. Its saver has no end: it is killed with the launch.
    """

    name = "dlrover-flash"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer

        self._directory = context.directory / "dlrover"
        self._checkpointer: Any = DdpCheckpointer(str(self._directory))
        self._step = 0

    @classmethod
    def refusal(cls, scenario: Scenario) -> str | None:
        if scenario.ranks > 1:
            return "runs without its own launcher with one process only"
        return _missing("dlrover.trainer.torch.flash_checkpoint.ddp")

    def start(self, directory: Path) -> Pending:
        from dlrover.trainer.torch.flash_checkpoint.ddp import StorageType

        self._step += 1
        self._checkpointer.save_checkpoint(
            self._step, self._named_tensors(), storage_type=StorageType.DISK
        )
        saved = self._directory / str(self._step)
        return Pending(saved, wait=partial(self._wait, self._step, saved))

    def load(self, saved: Path) -> None:
        loaded = self._checkpointer.load_checkpoint()  # the newest: from memory while it is there
        tensors = loaded.get("model_states", loaded)
        for name, tensor in self._named_tensors().items():
            tensor.copy_(tensors[name])

    def _named_tensors(self) -> dict[str, Tensor]:
        return {str(number): t for number, t in enumerate(self.context.state.local_tensors)}

    def _wait(self, step: int, saved: Path) -> None:
        latest = self._directory / "dlrover_latest.txt"
        give_up = time.monotonic() + _DLROVER_TIMEOUT_SECONDS
        while not (latest.exists() and latest.read_text().strip() == str(step)):
            if time.monotonic() > give_up:
                raise TimeoutError(f"dlrover did not report step {step} as saved")
            time.sleep(_POLL_SECONDS)
        make_durable(saved)


def _missing(module: str) -> str | None:
    try:
        found = find_spec(module)
    except ImportError as error:
        return f"cannot be imported: {error}"
    return None if found else f"{module.partition('.')[0]} is not installed"


def _do_nothing(*_: object, **__: object) -> None:
    pass
