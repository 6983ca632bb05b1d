"""Start the trainer: from command line and environment to an exit code.

Torch is imported only once the configuration is known to be sound: a typo is answered at once.
"""

import faulthandler
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from keepstep import failpoints
from keepstep.config import Config, PreemptionConfig, WatchdogConfig, resolve
from keepstep.elastic.preemption import NoticeSources, Preemption
from keepstep.elastic.watchdog import INIT, Watchdog, WatchdogPolicy
from keepstep.errors import ConfigError, ExitCode, KeepstepError, exit_code_of
from keepstep.launch.env import world_from
from keepstep.launch.worker import begin_worker, note_error
from keepstep.world import World

logger = logging.getLogger("keepstep.launch")

_FAILPOINTS_LOG = "KEEPSTEP_FAILPOINTS_LOG"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train: ``[recipe.toml ...] [--section.setting value ...]``.

    Returns when the run is complete, else exits the process with a code that says why.
    """
    faulthandler.enable()  # what dies in C says where
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments, os.environ)
    except KeepstepError as error:
        logger.error("%s: %s", type(error).__name__, error)
        note_error(error, os.environ)
        sys.exit(exit_code_of(error))
    except Exception as error:
        # Not by torch's `record`: a signal that ends this process while it writes leaves half a
        # file, and torchrun dies of that.
        note_error(error, os.environ)
        raise
    if code is not ExitCode.OK:
        sys.exit(code)


def _main(arguments: Sequence[str], environ: Mapping[str, str]) -> ExitCode:
    _set_up_logging(World())
    world = world_from(environ)
    _set_up_logging(world)
    config = _read_config(arguments, environ)
    _arm_failpoints(environ, world)
    watchdog = _watchdog(config.watchdog, environ)
    # DDP's reducer advises, in C++, against an option that is set on purpose. Only this variable
    # reaches it, and torch reads it when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if config.train.numerics == "exact":  # without it, cuBLAS may add in another order each time
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with Preemption(_notice_sources(config.preemption)) as preemption:
        from keepstep.launch.job import run_job

        return run_job(config, world, environ, preemption, watchdog) or ExitCode.OK


def _watchdog(config: WatchdogConfig, environ: Mapping[str, str]) -> Watchdog:
    """At work from here on: importing torch can hang too."""
    watchdog = begin_worker(environ)
    watchdog.is_armed = config.enabled
    watchdog.policy = WatchdogPolicy(
        floor_seconds=config.floor_seconds,
        factor=config.factor,
        unlearned_seconds=config.unlearned_seconds,
    )
    watchdog.begin(INIT)
    return watchdog


def _notice_sources(config: PreemptionConfig) -> NoticeSources:
    return NoticeSources(
        grace_seconds=config.grace_seconds,
        file=Path(config.notice_file) if config.notice_file else None,
        cloud=None if config.cloud == "none" else config.cloud,
        metadata_url=config.metadata_url or None,
        every_seconds=config.every_seconds,
    )


def _set_up_logging(world: World) -> None:
    """To stderr: INFO from the coordinator, warnings from everybody."""
    handler = logging.StreamHandler()
    form = f"%(asctime)s rank {world.rank} %(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(form, "%H:%M:%S"))
    root = logging.getLogger("keepstep")
    root.handlers = [handler]
    root.setLevel(logging.INFO if world.is_coordinator else logging.WARNING)
    root.propagate = False


def _read_config(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Leading arguments that are no flags are recipe files."""
    first_flag = next(
        (index for index, argument in enumerate(arguments) if argument.startswith("-")),
        len(arguments),
    )
    files = [Path(argument) for argument in arguments[:first_flag]]
    return resolve(files=files, environ=environ, arguments=arguments[first_flag:]).config


def _arm_failpoints(environ: Mapping[str, str], world: World) -> None:
    specification = environ.get("KEEPSTEP_FAILPOINTS", "")
    log = Path(environ[_FAILPOINTS_LOG]) if _FAILPOINTS_LOG in environ else None
    try:
        failpoints.arm(specification, rank=world.rank, restart_count=world.restart_count, log=log)
    except ValueError as error:
        raise ConfigError(f"KEEPSTEP_FAILPOINTS in the environment: {error}") from error
