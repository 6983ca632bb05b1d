"""The GPUs of this node: how many there should be, and whether they work.

A node whose GPUs have failed must not train on its CPU beside others, nor end the job for them.
"""

import logging
import os
import re
import socket
import time
import warnings
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from signal import SIGKILL
from typing import NoReturn

import torch

from keepstep.errors import ConfigError, DeviceError, KeepstepError
from keepstep.world import World

logger = logging.getLogger("keepstep.launch")

_DEVICES = Path("/dev")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_HIDING = frozenset({"", "-1", "NoDevFiles"})
"""Entries of that variable by which a person, or Slurm, says that there are no more."""

_OF_THE_SETUP = ("driver on your system is too old", "no kernel image is available")
"""In what CUDA says when torch does not suit the driver, or the GPU."""
_OUT_OF_MEMORY = "out of memory"

_ANSWER_SECONDS = 120.0
"""For a driver that has to start many GPUs first."""
_LONGEST_TROUBLE = 1000


def choose_device(world: World, environ: Mapping[str, str]) -> torch.device:
    """This rank's GPU if the node should have any, else the CPU.

    *Raises:* ``DeviceError`` if that GPU does not work, ``ConfigError`` if there is none for it.
    """
    shown = shown_gpus(environ)
    is_available = torch.cuda.is_available()
    if not is_available and (torch.version.cuda is None or not shown):
        if shown:
            logger.warning(
                "this node has a GPU that torch %s is not built for: training on the CPU. "
                "Install a build for CUDA, or set %s= if that is meant",
                torch.__version__,
                _VISIBLE,
            )
        return torch.device("cpu")
    count = torch.cuda.device_count() if is_available else 0
    if world.local_rank >= max(count, shown):
        raise ConfigError(
            f"local rank {world.local_rank} has no GPU: the node shows {max(count, shown)}. Start "
            f"as many ranks per node as GPUs, or set {_VISIBLE}= to train on CPU"
        )
    if world.local_rank >= count:
        raise _failure(_too_few(count, shown, environ), _trouble_of_cuda())
    device = torch.device("cuda", world.local_rank)
    try:
        torch.cuda.set_device(device)
        torch.cuda.synchronize(device)  # to set the GPU that is set already does not touch it
    except RuntimeError as error:
        if _OUT_OF_MEMORY in str(error):  # of somebody else's, who may be on the way out
            raise
        raise _failure(f"{device} cannot be used", str(error)) from error
    return device


def processes_of_node(asked: str, environ: Mapping[str, str]) -> str:
    """What ``--nproc-per-node`` comes to, once the GPUs that it needs have answered.

    *Blocks:* on the driver, for two minutes at most. *Raises:* ``DeviceError`` if it has fewer than
    it should, ``ConfigError`` if the node is not to have any, or torch does not suit it.
    """
    shown = shown_gpus(environ)
    if asked == "gpu":
        _check_gpus_are_meant(shown, environ)
    wanted = min(int(asked), shown) if asked.isdecimal() else 0
    if asked in ("gpu", "auto"):
        wanted = max(shown, asked == "gpu")
    if torch.version.cuda is None or not wanted:
        return asked
    count, trouble = _answer_of_cuda()
    if count < wanted:
        raise _failure(_too_few(count, max(shown, 1), environ), trouble)
    return asked if asked.isdecimal() else str(count)


def shown_gpus(environ: Mapping[str, str]) -> int:
    """How many GPUs this node should have for the job, whether they work or not."""
    if _VISIBLE not in environ:
        return sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in _DEVICES.iterdir())
    entries = [entry.strip() for entry in environ[_VISIBLE].split(",")]
    shown = list(takewhile(lambda entry: entry not in _HIDING, entries))
    # Of several instances of a MIG, CUDA takes the first.
    return 1 if shown and shown[0].startswith("MIG-") else len(shown)


def _check_gpus_are_meant(shown: int, environ: Mapping[str, str]) -> None:
    if _VISIBLE in environ and not shown:
        raise ConfigError(f"--nproc-per-node gpu: {_VISIBLE}={environ[_VISIBLE]} hides all GPUs")
    if torch.version.cuda is None and not torch.cuda.is_available():
        raise ConfigError(
            f"--nproc-per-node gpu: torch {torch.__version__} is not built for CUDA. Install a "
            "build that is, or write a number, or cpu"
        )


def _answer_of_cuda() -> tuple[int, str]:
    """How many GPUs it finds, and its trouble with them, if any.

    Asked by a process of its own: a dead driver may never answer, or take along who asks.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child needs none
        child = os.fork()
    if not child:
        _tell_of_cuda(writer)
    os.close(writer)
    status = None
    give_up = time.monotonic() + _ANSWER_SECONDS
    with open(reader, encoding="utf-8", errors="replace") as answer:  # noqa: PTH123  # no path
        try:
            while status is None:
                if time.monotonic() > give_up:
                    return 0, f"the driver has not answered in {_ANSWER_SECONDS:g} s"
                time.sleep(0.01)
                ended, its_status = os.waitpid(child, os.WNOHANG)
                status = its_status if ended else None
        finally:
            if status is None:  # which may have no effect on it: do not wait
                os.kill(child, SIGKILL)
        count, _, trouble = answer.read().partition("\n")
    if not count:
        return 0, f"the process that asked ended with {os.waitstatus_to_exitcode(status)}"
    return int(count), trouble


def _tell_of_cuda(writer: int) -> NoReturn:
    """In the child, which must not run any of its parent's endings."""
    try:
        trouble = _trouble_of_cuda()
        count = 0 if trouble else torch.cuda.device_count()
        os.write(writer, f"{count}\n{trouble[:_LONGEST_TROUBLE]}".encode())
    finally:
        os._exit(0)


def _trouble_of_cuda() -> str:
    """What it says when it cannot start; empty if it can."""
    try:
        torch.cuda.init()
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        return str(error) or type(error).__name__
    return ""


def _too_few(count: int, shown: int, environ: Mapping[str, str]) -> str:
    where = f"{_VISIBLE}={environ[_VISIBLE]}" if _VISIBLE in environ else f"{_DEVICES}/nvidia*"
    return f"CUDA finds {count} of the {shown} GPUs that there should be ({where})"


def _failure(what: str, trouble: str) -> KeepstepError:
    said = f"{what}: {trouble.strip().splitlines()[0].rstrip('. ')}" if trouble.strip() else what
    if any(sign in trouble for sign in _OF_THE_SETUP):
        return ConfigError(
            f"{said}. Install a torch that suits the driver and the GPU, or another driver; to "
            f"train on CPU, set {_VISIBLE}="
        )
    return DeviceError(
        f"{said}. Something is wrong with {socket.gethostname()}: look at nvidia-smi, and for Xid "
        f"in dmesg; drain the machine until it is mended. Name the GPUs that are to be used in "
        f"{_VISIBLE}, or none to train on CPU"
    )
