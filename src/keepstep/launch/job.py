"""One incarnation of a training job, from the process group to the last commit."""

import logging
from collections.abc import Mapping

import torch
import torch.distributed as dist

import keepstep
from keepstep.config import Config
from keepstep.elastic.preemption import Preemption
from keepstep.elastic.watchdog import EXIT, Watchdog
from keepstep.errors import ExitCode
from keepstep.launch.devices import choose_device
from keepstep.launch.process_group import process_group
from keepstep.train.loop import train
from keepstep.train.numerics import plan_numerics
from keepstep.train.parallel import plan_layout
from keepstep.train.report import committed_step
from keepstep.train.tasks import open_task
from keepstep.world import World

logger = logging.getLogger("keepstep.launch")

_READ_ONCE = {"auto": None, "always": True, "never": False}


def run_job(
    config: Config,
    world: World,
    environ: Mapping[str, str],
    preemption: Preemption,
    watchdog: Watchdog,
) -> ExitCode:
    """Train until the run is complete or told to stop; how the process should end.

    *Ranks:* collective. *Durability:* unless that is ``PREEMPTED_UNSAVED``, the last step is
    committed once this returns.
    """
    device = choose_device(world, environ)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    timeout_seconds = config.parallel.timeout_seconds
    with process_group(world, environ, device, timeout_seconds=timeout_seconds):
        task = open_task(config)
        layout = plan_layout(config.parallel, world, device)
        numerics = plan_numerics(config, layout, device)
        with keepstep.open(
            config.uri,
            every=config.checkpoint.every,
            keep=config.checkpoint.keep,
            mode=config.checkpoint.mode,
            when_busy=config.checkpoint.when_busy,
            init_from=config.init_from or None,
            read_once=_READ_ONCE[config.checkpoint.read_once],
            # Asked for once: after a failure the job goes on from its own newest commit.
            resume="auto" if _is_restart(world) else config.resume,
            mathematics=config.mathematics()
            | numerics.conditions
            | {"data.digest": task.data_digest},
            config_digest=config.digest(),
            accept_change=config.accept_change,
            seed=config.seed,
            preemption=preemption,
            watchdog=watchdog,
            world=world,
            parallel=layout.describe(),
            samples_per_epoch=task.num_samples,
            timeout_seconds=config.checkpoint.timeout_seconds,
            step_timeout_seconds=config.parallel.timeout_seconds,
            deadline_seconds=config.checkpoint.deadline_seconds,
            failed_saves_allowed=config.checkpoint.failed_saves_allowed,
            when_failing=config.checkpoint.when_failing,
            longest_pause_seconds=config.checkpoint.longest_pause_seconds,
            single_writer=config.storage.single_writer,
            retry_seconds=config.storage.retry_seconds,
        ) as session:
            summary = train(session, task, config, device)
        watchdog.begin(EXIT)  # a communicator can hang in its end as well
        stop = session.stopped
        word = "done" if stop is None else "stopped"
        logger.info("%s %s committed=%s", word, summary, committed_step(session))
    return stop.exit_code if stop else ExitCode.OK


def _is_restart(world: World) -> bool:
    """Whether any node has been in this job before: the others may be new. *Ranks:* collective."""
    count = torch.tensor(world.restart_count, device="cpu")
    if dist.is_initialized():
        dist.all_reduce(count, dist.ReduceOp.MAX)
    return bool(count)
