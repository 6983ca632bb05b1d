"""Opening a session."""

from collections.abc import Mapping
from typing import Any, Literal

import torch.distributed as dist

from keepstep.config import parse_interval
from keepstep.session.session import Session, Settings
from keepstep.storage.opening import open_storage
from keepstep.world import World

Resume = Literal["auto", "must", "never"] | int


def open(
    uri: str,
    *,
    every: str | int = "100steps",
    resume: Resume = "auto",
    seed: int = 0,
    mathematics: Mapping[str, Any] | None = None,
    accept_change: bool = False,
    config_digest: str | None = None,
    parallel: Mapping[str, Any] | None = None,
    samples_per_epoch: int | None = None,
    timeout_seconds: float = 120.0,
    step_timeout_seconds: float = 1800.0,
    failed_saves_allowed: int = 10,
    world: World | None = None,
) -> Session:
    """Open a run: its history is below ``uri``, and this process group is about to extend it.

    Use it as a context manager: leaving the block without an exception commits the last step.

    *Ranks:* collective; initialize the process group first, if there is more than one rank.

    Args:
        uri: A directory that all ranks share. It is made if it is not there.
        every: How often ``tick`` saves: steps (``50``, ``"50steps"``) or time (``"30s"``,
            ``"10min"``, ``"1h"``).
        resume: ``"auto"``: the newest checkpoint that verifies, or a fresh start if there is none;
            ``"must"``: an error if there is none; ``"never"``: an error if there is one; a number:
            exactly that step, leaving later ones aside. A restart of the same job wants ``"auto"``.
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
        failed_saves_allowed: Failed saves in a row before training stops.
        world: Who this process is; taken from the process group by default.

    *Raises:* ``ConfigError``; ``StorageError`` if the store cannot be written.
    """
    settings = Settings(
        every=parse_interval(every),
        resume=resume,
        seed=seed,
        mathematics=mathematics,
        accept_change=accept_change,
        config_digest=config_digest,
        parallel=dict(parallel or {}),
        samples_per_epoch=samples_per_epoch,
        timeout_seconds=timeout_seconds,
        step_timeout_seconds=step_timeout_seconds,
        failed_saves_allowed=failed_saves_allowed,
    )
    return Session(open_storage(uri), settings, world or _world_of_group())


def _world_of_group() -> World:
    if not dist.is_initialized():
        return World()
    return World(rank=dist.get_rank(), world_size=dist.get_world_size())
