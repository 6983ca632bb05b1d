"""One incarnation of a training job, from the process group to the last commit."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

import keepstep
from keepstep.config import Config
from keepstep.elastic.preemption import Preemption
from keepstep.elastic.watchdog import EXIT, Watchdog
from keepstep.errors import ConfigError, ExitCode
from keepstep.launch.process_group import process_group
from keepstep.train.loop import train
from keepstep.train.numerics import plan_numerics
from keepstep.train.parallel import plan_layout
from keepstep.train.report import committed_step
from keepstep.train.tasks import open_task
from keepstep.world import World

logger = logging.getLogger("keepstep.launch")

_FIRST_GPU = Path("/dev/nvidia0")
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


def choose_device(world: World, environ: Mapping[str, str]) -> torch.device:
    """This rank's GPU if the machine has any, else the CPU."""
    if not torch.cuda.is_available():
        if _FIRST_GPU.exists() and environ.get("CUDA_VISIBLE_DEVICES") != "":
            logger.warning(
                "this node has a GPU that torch %s (CUDA: %s) cannot use: training on the CPU. "
                "Install a build for its driver, or set CUDA_VISIBLE_DEVICES= if that is meant",
                torch.__version__,
                torch.version.cuda,
            )
        return torch.device("cpu")
    if world.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {world.local_rank} has no GPU: the node shows "
            f"{torch.cuda.device_count()}. Start as many ranks per node as GPUs, or set "
            "CUDA_VISIBLE_DEVICES= to train on CPU"
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device
