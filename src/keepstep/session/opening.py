"""Opening a session."""

import logging
import os
from collections.abc import Mapping
from typing import Any, Literal

import torch.distributed as dist

from keepstep.checkpoint.save_engine import SaveMode
from keepstep.commit.canonical import compact_bytes
from keepstep.config import parse_interval, parse_keep
from keepstep.elastic.preemption import NoticeSources, Preemption
from keepstep.elastic.watchdog import Watchdog, installed
from keepstep.errors import ConfigError
from keepstep.session.saves import WhenFailing
from keepstep.session.session import Session
from keepstep.session.settings import Settings, WhenBusy
from keepstep.storage.opening import open_storage
from keepstep.storage.retrying import RetryPolicy
from keepstep.world import World

logger = logging.getLogger("keepstep.session")

Resume = Literal["auto", "must", "never"] | int


def open(
    uri: str,
    *,
    every: str | int = "100steps",
    keep: str = "all",
    mode: Literal["sync", "async", "overlap"] = "async",
    when_busy: WhenBusy = "wait",
    resume: Resume = "auto",
    init_from: str | None = None,
    read_once: bool | None = None,
    seed: int = 0,
    mathematics: Mapping[str, Any] | None = None,
    accept_change: bool = False,
    config_digest: str | None = None,
    parallel: Mapping[str, Any] | None = None,
    samples_per_epoch: int | None = None,
    timeout_seconds: float = 120.0,
    step_timeout_seconds: float = 1800.0,
    deadline_seconds: float = 1800.0,
    failed_saves_allowed: int = 10,
    when_failing: WhenFailing = "stop",
    longest_pause_seconds: float = 3600.0,
    single_writer: bool = False,
    retry_seconds: float = 60.0,
    preemption: Preemption | None = None,
    watchdog: Watchdog | None = None,
    world: World | None = None,
) -> Session:
    """Open a run: its history is below ``uri``, and this process group is about to extend it.

    Use it as a context manager: leaving the block without an exception commits the last step.

    *Ranks:* collective; initialize the process group first, if there is more than one rank.

    Args:
        uri: A directory that all ranks share, made if it is not there; or ``s3://bucket/prefix``;
            or what fsspec knows.
        every: How often ``tick`` saves: steps (``50``, ``"50steps"``) or time (``"30s"``,
            ``"10min"``, ``"1h"``), or ``"auto"``: whatever loses the least time, from the measured
            cost of a save and the failures of this run so far.
        keep: Which checkpoints outlive later ones: rules that add up, such as
            ``"last=3,every=1h,best=val_loss:min:2"``; the rest is removed, in the background of
            training, once a newer one is verified. ``"all"``: nothing is ever removed.
        mode: When training goes on after a save has begun. ``"async"``: once the tensors are copied
            to host memory, which takes as much of it as this rank writes. ``"overlap"``: at once;
            :meth:`Session.guard` waits for the copy, and the step is committed after that at the
            earliest. ``"sync"``: once the step is committed; needs no memory for a copy.
        when_busy: What ``tick`` does when a save is due and the one before is still in flight:
            ``"wait"`` for it, or ``"skip"`` the new one.
        resume: ``"auto"``: the newest checkpoint that verifies, or a fresh start if there is none;
            ``"must"``: an error if there is none; ``"never"``: an error if there is one; a number:
            exactly that step, leaving later ones aside. A restart of the same job wants ``"auto"``.
        init_from: Weights for a fresh start: a run or checkpoint of keepstep's, a directory of
            stock DCP's, a file of ``torch.save``, or safetensors. Ignored once the run has a
            checkpoint.
        read_once: Whether what several ranks need at a resume, replicas and indexes, is read by one
            of them and sent to the others; by default if the store is remote.
        seed: From which random generators are derived when the world size has changed.
        mathematics: Settings that alter what is computed, by dotted name; JSON values. They go into
            every manifest, and a resume with other ones is refused.
        accept_change: Resume all the same.
        config_digest: Of the whole configuration; goes into every manifest.
        parallel: Description of the parallel layout; goes into every manifest.
        samples_per_epoch: If given, manifests name the epoch as well.
        timeout_seconds: The longest that a save waits for a rank that gives no sign of life.
        step_timeout_seconds: The longest that ``tick`` and ``restore`` wait for a rank that is
            still computing or loading.
        deadline_seconds: The longest that a rank copies and writes before it gives a save up.
        failed_saves_allowed: Failed saves in a row before ``when_failing`` applies.
        when_failing: What follows: ``"stop"`` with an error; ``"pause"`` training and try again
            until a save is committed, for ``longest_pause_seconds`` at most; or ``"continue"``,
            trying again whenever a save is due.
        single_writer: Whether to use a store that cannot create objects exclusively. You then vouch
            that never two jobs work on the run at a time: nothing else keeps them apart.
        retry_seconds: How long a request to a remote store is repeated before it has failed.
        preemption: What listens for word that this process will be stopped. By default SIGTERM and
            SIGUSR1 are such word, with 30 s to go, unless the process handles them already or this
            is not the main thread.
        watchdog: What ends this process if it hangs. By default there is one in the workers of
            ``keepstep run``, and none elsewhere.
        world: Who this process is; taken from the process group by default.

    *Raises:* ``ConfigError``; ``StorageError`` if the store cannot be written.
    """
    _check_json("mathematics", mathematics or {})
    _check_json("parallel", parallel or {})
    settings = Settings(
        every=parse_interval(every),
        keep=parse_keep(keep),
        mode=_mode(mode),
        when_busy=_when_busy(when_busy),
        resume=resume,
        init_from=init_from,
        read_once=read_once,
        seed=seed,
        mathematics=mathematics,
        accept_change=accept_change,
        config_digest=config_digest,
        parallel=dict(parallel or {}),
        samples_per_epoch=samples_per_epoch,
        timeout_seconds=timeout_seconds,
        step_timeout_seconds=step_timeout_seconds,
        deadline_seconds=deadline_seconds,
        failed_saves_allowed=failed_saves_allowed,
        when_failing=_when_failing(when_failing),
        longest_pause_seconds=longest_pause_seconds,
        single_writer=single_writer,
        owns_preemption=preemption is None,
    )
    policy = RetryPolicy(timeout_seconds=retry_seconds)
    storage = open_storage(uri, single_writer=single_writer, policy=policy)
    listening = preemption or Preemption(NoticeSources())
    try:
        return Session(
            storage, settings, world or _world_of_group(), listening, watchdog or installed()
        )
    except BaseException:
        if preemption is None:
            listening.close()
        raise


def _mode(mode: str) -> SaveMode:
    try:
        return SaveMode(mode)
    except ValueError:
        raise ConfigError(f"mode={mode!r}: choose one of {', '.join(SaveMode)}") from None


def _when_busy(when_busy: WhenBusy) -> WhenBusy:
    if when_busy == "wait" or when_busy == "skip":  # spelled so that mypy follows
        return when_busy
    raise ConfigError(f"when_busy={when_busy!r}: choose 'wait' or 'skip'")


def _when_failing(when_failing: WhenFailing) -> WhenFailing:
    if when_failing in ("stop", "continue", "pause"):
        return when_failing
    raise ConfigError(f"when_failing={when_failing!r}: choose 'stop', 'continue' or 'pause'")


def _check_json(name: str, settings: Mapping[Any, Any]) -> None:
    """What goes into every manifest has to be what JSON can say."""
    for key, value in settings.items():
        if not isinstance(key, str):
            raise ConfigError(f"{name} has the key {key!r}: keys are text")
        try:
            compact_bytes(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{name} has {key}={value!r}, which no manifest can hold ({error}); give finite "
                "numbers, text, lists and the like"
            ) from error


def _world_of_group() -> World:
    if not dist.is_initialized():
        return World()
    world = World(rank=dist.get_rank(), world_size=dist.get_world_size())
    if world.is_coordinator and _keeps_old_addresses(os.environ):
        logger.warning(
            "torchrun would keep the addresses of these ranks for those it starts after a failure, "
            "which may then not find each other: use keepstep run, or set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun"
        )
    return world


def _keeps_old_addresses(environ: Mapping[str, str]) -> bool:
    """Whether torchrun restarts, and hosts one store for all of its incarnations."""
    is_shared = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    return is_shared and restarts and "KEEPSTEP_ROUND" not in environ
