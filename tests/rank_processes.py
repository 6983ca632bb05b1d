"""Ranks as forked processes, which share the parent's imported torch."""

import faulthandler
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

RunRanks = Callable[..., list[Any]]
_TIMEOUT_SECONDS = 90


def run_in_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, start_method: str = "fork"
) -> list[Any]:
    """Run a function on ranks of their own processes; what it returns, by rank.

    ``start_method="spawn"`` is for what does not survive a fork, as torch.compile: slower.
    """
    import torch

    torch.set_num_threads(1)  # a forked child must not inherit a thread pool that lives elsewhere
    context: Any = get_context(start_method)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes, pipes = [], []
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        target = (rank, world_size, port, theirs, function, args)
        process = context.Process(target=_rank_main, args=target, daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    try:
        return [
            _result(rank, *ends) for rank, ends in enumerate(zip(processes, pipes, strict=True))
        ]
    finally:
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()


def _result(rank: int, process: BaseProcess, pipe: Connection) -> Any:
    if not wait([pipe], _TIMEOUT_SECONDS):
        pytest.fail(f"rank {rank} did not end within {_TIMEOUT_SECONDS} s")
    try:
        is_good, result = pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join(timeout=5)
        pytest.fail(f"rank {rank} died without a word, exit code {process.exitcode}")
    if not is_good:
        pytest.fail(f"rank {rank} raised:\n{result}", pytrace=False)
    return result


def _rank_main(
    rank: int, world_size: int, port: int, pipe: Connection, function: Callable[..., Any], args: Any
) -> None:
    import torch.distributed as dist

    faulthandler.enable()  # a rank that dies by itself says where
    try:
        store = dist.TCPStore("127.0.0.1", port, world_size, rank == 0, timedelta(seconds=30))
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
        )
        result = (True, function(rank, *args))
        dist.barrier()
    except BaseException:  # noqa: BLE001  # reported to the test, whatever it is
        result = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(result))
    pipe.close()
    os._exit(0)  # a forked child runs none of pytest's own endings
