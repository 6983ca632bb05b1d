"""``keepstep run``: torchrun in this process, with exit codes that mean something."""

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keepstep.elastic.health import PREFIX
from keepstep.errors import ConfigError, DeviceError, ExitCode

if TYPE_CHECKING:
    from keepstep.launch.supervisor import Job

logger = logging.getLogger("keepstep.launch")

_TRIES = 3
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""torchrun's, and what Slurm is asked to send."""

_NCCL = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",  # end the process; torchrun would set 1: abort as well
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_FR_BUFFER_SIZE": "2000",
}
"""NCCL's flight recorder: which collective each rank was in when one timed out."""

_TUNED_C10D = "keep_alive_interval=1,keep_alive_max_attempt=3,last_call_timeout=3"


def run(arguments: Sequence[str]) -> int:
    """Run ``[torchrun options] SCRIPT ...``; returns the exit code that stands for the job's end.

    *Ranks:* one launcher a node. *Blocks:* until the job is over, or this node leaves it.
    """
    _hear_early()
    from keepstep.launch.termination import last_words_left

    try:
        options = _parser().parse_args(list(arguments))
    except SystemExit as refused:
        return ExitCode.USAGE if refused.code else ExitCode.OK
    if problem := _problem(options):
        sys.stderr.write(f"keepstep run: {problem}\n")
        return ExitCode.USAGE
    _set_up_logging()
    with _directories(options.log_dir) as (heartbeats, logs):
        options.log_dir = str(logs)
        job = _job(options, heartbeats, logs)
        with last_words_left(options.termination_log, job, os.environ):
            try:
                code = job.exit_code = _launch(options, job)
            finally:
                _hear_no_more(job.signals)
        if code == ExitCode.OK and options.is_log_dir_ours:
            shutil.rmtree(logs, ignore_errors=True)
    return code


def _job(options: argparse.Namespace, heartbeats: Path, logs: Path) -> "Job":
    from keepstep.launch.budget import Budget
    from keepstep.launch.supervisor import Job

    signals = getattr(options, "signals_to_handle", _SIGNALS)
    return Job(heartbeats, logs, Budget(options.tries, options.restarts), signals)


def _launch(options: argparse.Namespace, job: "Job") -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args

    from keepstep.launch.devices import processes_of_node
    from keepstep.launch.supervisor import exit_code_after, hear_signals

    _choose_rendezvous(options)
    _prepare_environment(job.logs)
    try:
        hear_signals(job.signals)
        options.nproc_per_node = processes_of_node(options.nproc_per_node, os.environ)
        config, entrypoint, worker_arguments = config_from_args(options)
        with _supervised(job), _metrics(options.metrics_port, job):
            elastic_launch(config, entrypoint)(*_watched(entrypoint, worker_arguments))
    except SignalException as told:
        job.cause = job.cause or str(told)
        if job.exit_code is None:
            codes = job.supervisor.worker_codes() if job.supervisor else []
            job.exit_code = exit_code_after(told.sigval, codes, is_started=bool(codes))
            logger.warning("%s: ending with %d", told, job.exit_code)
        return job.exit_code
    except ChildFailedError:  # the supervisor has told about it
        return ExitCode.ERROR if job.exit_code is None else job.exit_code
    except (ConfigError, DeviceError) as error:
        job.cause = str(error)
        logger.error("%s", error)
        return error.exit_code
    except RendezvousError as error:
        job.cause = f"the nodes could not meet: {type(error).__name__}: {error}"
        logger.error("%s", job.cause)
        return ExitCode.TRANSIENT
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    """torchrun's, with defaults that suit and a few options more."""
    from torch.distributed.run import get_args_parser

    parser: argparse.ArgumentParser = get_args_parser()
    parser.prog = "keepstep run"
    parser.usage = "keepstep run [option ...] {SCRIPT | -m MODULE} ...   (--help tells the options)"
    parser.description = "torchrun, with a watchdog, restarts that end, and meaningful exit codes."
    parser.add_argument(
        "--tries",
        type=int,
        default=_TRIES,
        help="How many incarnations in a row may end without a new commit.",
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        default=os.environ.get("KEEPSTEP_METRICS_PORT"),
        help="Serve /metrics, /healthz and /readyz of this node there; 0 lets one be chosen.",
    )
    parser.add_argument(
        "--termination-log",
        type=Path,
        help="A file for the launcher's last words, as /dev/termination-log in Kubernetes.",
    )
    # What the environment says in torchrun's own way still counts.
    if "PET_MAX_RESTARTS" not in os.environ:
        parser.set_defaults(max_restarts=None)
    if "PET_TEE" not in os.environ:
        parser.set_defaults(tee="2")
    if "PET_SIGNALS_TO_HANDLE" not in os.environ:
        parser.set_defaults(signals_to_handle=_SIGNALS)
    return parser


def _problem(options: argparse.Namespace) -> str | None:
    """What is wrong with the options, as far as torchrun would not say it well."""
    from keepstep.launch.supervisor import MANY_RESTARTS

    options.restarts = options.max_restarts
    options.max_restarts = MANY_RESTARTS
    options.is_log_dir_ours = options.log_dir is None
    if options.restarts is not None and options.restarts < 0:
        return f"--max-restarts {options.restarts}: a number from 0 on is needed"
    if options.tries < 1:
        return f"--tries {options.tries}: at least 1 is needed"
    if options.metrics_port is not None and not 0 <= options.metrics_port < 65536:
        return f"--metrics-port {options.metrics_port}: a port from 0 to 65535 is needed"
    is_file = not (options.module or options.no_python)
    if is_file and not Path(options.training_script).is_file():
        return f"{options.training_script}: there is no such script; name a module with -m"
    if options.module and options.no_python:
        return "-m and --no-python exclude each other"
    return None


def _choose_rendezvous(options: argparse.Namespace) -> None:
    """One node needs none but its own; several are better off with keepstep's."""
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.run import parse_min_max_nnodes

    from keepstep.launch.agent import make_handler

    _, most_nodes = parse_min_max_nnodes(options.nnodes)
    is_static = options.rdzv_backend == "static"
    if is_static and options.rdzv_endpoint:
        options.rdzv_backend = "keepstep"
    elif options.standalone or (is_static and most_nodes == 1 and options.master_port is None):
        options.rdzv_backend = "c10d"
        options.rdzv_endpoint = "localhost:0"
        options.rdzv_id = str(uuid.uuid4())
    elif options.rdzv_backend == "c10d":
        options.rdzv_conf = options.rdzv_conf or _TUNED_C10D
    # Else ranks that are started again read in the agents' store where the last ones had listened.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    options.master_port = options.master_port or 29500
    if options.rdzv_backend == "keepstep":
        rendezvous_handler_registry.register("keepstep", make_handler)


def _prepare_environment(logs: Path) -> None:
    """Of the workers. What the user has set stays."""
    from keepstep.launch.worker import AGENT

    os.environ[AGENT] = str(os.getpid())
    traces = {"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(logs / "nccl_trace_rank_")}
    for name, value in (_NCCL | traces).items():
        os.environ.setdefault(name, value)


def _watched(entrypoint: object, arguments: Sequence[str]) -> list[str]:
    """With a first word by keepstep, if Python is what runs."""
    if isinstance(entrypoint, str) and arguments[:1] == ["-u"]:
        return ["-u", "-m", "keepstep.launch.worker", *arguments[1:]]
    return list(arguments)


@contextmanager
def _supervised(job: "Job") -> Iterator[None]:
    """torch's launcher makes the agent by a name in its module: let that be the supervisor."""
    from torch.distributed.launcher import api

    from keepstep.launch.supervisor import Supervisor, check_agent

    check_agent()

    original = api.LocalElasticAgent  # type: ignore[attr-defined]
    replacement: Any = partial(Supervisor, job=job)
    api.LocalElasticAgent = replacement  # type: ignore[attr-defined]
    try:
        yield
    finally:
        api.LocalElasticAgent = original  # type: ignore[attr-defined]


@contextmanager
def _metrics(port: int | None, job: "Job") -> Iterator[None]:
    """Serve them, if they are asked for. *Raises:* ConfigError if that cannot be."""
    if port is None:
        yield
        return
    from keepstep.launch.worker import NUMBERS

    try:
        from keepstep.launch.metrics_server import serving
    except ModuleNotFoundError as missing:
        if missing.name != "prometheus_client":
            raise
        raise ConfigError(
            "--metrics-port needs prometheus-client: pip install 'keepstep[metrics]'"
        ) from missing
    os.environ[NUMBERS] = "1"
    with serving(port, job.look) as chosen:
        logger.info("metrics at port %d: /metrics, /healthz, /readyz", chosen)
        yield


@contextmanager
def _directories(log_dir: str | None) -> Iterator[tuple[Path, Path]]:
    """For heartbeats, in memory if there is such a place; and for logs."""
    memory = Path("/dev/shm")  # noqa: S108  # a directory of an own name is made in it
    place = memory if os.access(memory, os.W_OK) else None
    heartbeats = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    try:
        logs = Path(log_dir) if log_dir else Path(tempfile.mkdtemp(prefix="keepstep-logs-"))
        logs.mkdir(parents=True, exist_ok=True)
        yield heartbeats, logs
    finally:
        shutil.rmtree(heartbeats, ignore_errors=True)


def _hear_early() -> None:
    """Importing torch takes seconds, and as PID 1 a process without handlers hears nothing."""

    def leave(number: int, *_: object) -> None:
        sys.exit(128 + number if number == signal.SIGINT else ExitCode.PREEMPTED)

    for name in _SIGNALS.split(","):
        signal.signal(getattr(signal, name), leave)


def _hear_no_more(names: str) -> None:
    """The end is decided. Kubernetes tells the pods of a job that is complete to go, and Python on
    its way out would die of that, with another code.
    """
    for name in names.split(","):
        number = getattr(signal, name.strip(), None)
        if number is not None:
            signal.signal(number, signal.SIG_IGN)


def _set_up_logging() -> None:
    """To stderr, for a person."""
    root = logging.getLogger("keepstep")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s keepstep run: %(message)s", "%H:%M:%S"))
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
