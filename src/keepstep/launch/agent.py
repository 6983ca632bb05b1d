"""What keepstep adds to torchrun's agent: the entry point behind ``--rdzv-backend=keepstep``."""

import atexit
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters

from keepstep.elastic.rendezvous.handler import KeepstepRendezvousHandler
from keepstep.elastic.rendezvous.link import Endpoint
from keepstep.elastic.rendezvous.settings import address_from, settings_from
from keepstep.errors import ConfigError

logger = logging.getLogger("keepstep.launch")

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"


def get_handler() -> Callable[[RendezvousParameters], KeepstepRendezvousHandler]:
    """What the entry point group ``torchrun.handlers`` wants: a function that makes the handler."""
    return make_handler


def make_handler(params: RendezvousParameters) -> KeepstepRendezvousHandler:
    """The rendezvous of this agent.

    *Raises:* ConfigError for an endpoint or a ``--rdzv-conf`` that cannot be right.
    """
    _set_up_logging()
    settings = settings_from(params.config)
    endpoint = endpoint_from(params)
    _hear_signals(os.environ.get("TORCHELASTIC_SIGNALS_TO_HANDLE", _SIGNALS))
    _honor_stop_time(settings.stop_timeout)
    mark = CommitMark()
    os.environ["KEEPSTEP_COMMIT_MARK"] = str(mark.path)
    handler = KeepstepRendezvousHandler(
        params, settings, endpoint, tell_workers=os.environ.update, committed_at=mark.seen_at
    )
    # torchrun does not shut the rendezvous down after a signal. Its workers have ended by then.
    atexit.register(handler.leave)
    return handler


def endpoint_from(params: RendezvousParameters) -> Endpoint:
    """Where the rendezvous store is. *Raises:* ConfigError."""
    text = params.endpoint.strip()
    if not text:
        raise ConfigError(
            "--rdzv-endpoint is missing: HOST[:PORT] of `keepstep store`, or of a node that is to "
            "host it; on a single node localhost will do"
        )
    return Endpoint(*address_from("--rdzv-endpoint", text))


class CommitMark:
    """A file that workers of this node touch after a commit, watched by their agent."""

    def __init__(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="keepstep-agent-"))
        self.path = directory / "committed"
        self._stamp = 0
        self._seen_at: float | None = None
        atexit.register(shutil.rmtree, directory, ignore_errors=True)

    def seen_at(self) -> float | None:
        """When, on the monotonic clock, a commit was first seen here after the one before it."""
        try:
            stamp = self.path.stat().st_mtime_ns
        except OSError:
            return self._seen_at
        if stamp != self._stamp:
            self._stamp, self._seen_at = stamp, time.monotonic()
        return self._seen_at


def _set_up_logging() -> None:
    """The agent's own warnings, to stderr, unless somebody has configured logging."""
    root = logging.getLogger("keepstep")
    if not root.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s agent %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False
    if root.level == logging.NOTSET:
        root.setLevel(logging.INFO)


def _hear_signals(names: str) -> None:
    """Handle signals from now on; torchrun does only once the first workers have started.

    Without a handler, a SIGTERM during the first rendezvous is dropped if the agent is PID 1.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for name in names.split(","):
        number = getattr(signal, name.strip(), None)
        if number is None:
            continue  # torchrun reports it
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _raise_signal)


def _raise_signal(number: int, *_: object) -> None:
    name = signal.Signals(number).name
    raise SignalException(f"{name} came to agent {os.getpid()}", sigval=signal.Signals(number))


def _honor_stop_time(seconds: float | None) -> None:
    """Let workers that are stopped for a restart have the configured time.

    torch gives them 30 s, whatever ``--shutdown-timeout`` says. Where its agent looks otherwise
    than expected it is left alone, with a warning.
    """
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.api import PContext

    stop = getattr(LocalElasticAgent, "_stop_workers", None)
    if stop is None or "timeout" not in signature(PContext.close).parameters:
        logger.warning("this torch stops workers within its own time: stop_timeout has no effect")
        return

    @wraps(stop)
    def stop_workers(self: Any, *args: Any, **kwargs: Any) -> None:
        workers = getattr(self, "_pcontext", None)
        if workers is not None:
            timeout = getattr(self, "_shutdown_timeout", 30) if seconds is None else seconds
            workers.close = _with_timeout(workers.close, timeout)
        stop(self, *args, **kwargs)

    LocalElasticAgent._stop_workers = stop_workers  # type: ignore[method-assign]  # noqa: SLF001


def _with_timeout(close: Callable[..., None], timeout: float) -> Callable[..., None]:
    """``PContext.close``; torch 2.11 leaves out the time to wait, later ones give their own."""
    return lambda death_sig=None, *_, **__: close(death_sig, timeout=timeout)
