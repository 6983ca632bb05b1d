"""Worker processes that read ahead, and what becomes of them when signals come or the trainer dies.

A preemption notice goes to the whole process group. A trainer answers it with one more save; its
workers must not die of it, or torch's ``DataLoader`` raises in the middle of that. So they ignore
the signals of a notice, and leave when the trainer tells them to, or the kernel once it is gone.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from keepstep.processes import die_with

_NOTICES = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def read_ahead(
    source: Dataset[Any], requests: Iterable[Any], *, num_workers: int, prefetch: int
) -> Iterator[Any]:
    """``source[request]`` for every request, in order; workers are some requests ahead.

    Host tensors are pinned if CUDA is in use.

    Args:
        num_workers: Processes; with 0 everything is read here, when it is wanted.
        prefetch: Requests that each worker is ahead.
    """
    loader = DataLoader(
        source,
        sampler=requests,
        batch_size=None,  # a request is a whole batch
        collate_fn=_as_it_is,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        # Forked: whatever data set the trainer has, its workers have.
        multiprocessing_context="fork" if num_workers else None,
        worker_init_fn=_worker_life() if num_workers else None,
        pin_memory=torch.cuda.is_available() and torch.cuda.is_initialized(),
        generator=torch.Generator(),  # or it would draw from the trainer's
    )
    with _termination_blocked():
        return iter(loader)


@contextmanager
def _termination_blocked() -> Iterator[None]:
    """Let workers begin with it blocked: a notice must not end one that is still being set up.

    It is for this thread alone; others of this process go on hearing it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_it_is(batch: Any) -> Any:
    return batch


def _worker_life() -> Any:
    # The kernel means the thread that forked: a worker must not die with a passing one.
    is_main = threading.current_thread() is threading.main_thread()
    return partial(_begin_worker, trainer=os.getpid(), dies_with_parent=is_main)


def _begin_worker(worker: int, *, trainer: int, dies_with_parent: bool) -> None:
    del worker
    if dies_with_parent:
        die_with(trainer)
    for notice in _NOTICES:
        signal.signal(notice, signal.SIG_IGN)
    _obey_termination_from(trainer)


def _obey_termination_from(trainer: int) -> None:
    """SIGTERM ends this process if the trainer sent it, as it does to a worker that hangs."""
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def obey() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    threading.Thread(target=obey, name="keepstep-sigterm", daemon=True).start()
