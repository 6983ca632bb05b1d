"""The one place where a request to a remote store is tried again."""

import logging
import random
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import stamina

from keepstep.errors import InternalError
from keepstep.observability.counters import COUNTERS

logger = logging.getLogger("keepstep.storage")

RETRIES = "storage_retries"
"""Name of the counter of repeated requests; labels: operation, cause."""

T = TypeVar("T")

_chance = random.Random()
"""Of its own: the generator of the module belongs to training, and is restored bit for bit."""

_is_counted_here: ContextVar[bool] = ContextVar("is_counted_here", default=False)


class _NotOurs(logging.Filter):
    """Keeps stamina from warning of every retry of ours: a busy store causes thousands."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002  # logging's
        return not _is_counted_here.get()


logging.getLogger("stamina").addFilter(_NotOurs())


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long one request is repeated: whichever limit comes first."""

    attempts: int = 20
    timeout_seconds: float = 60.0
    """After so long no further attempt is begun."""
    longest_wait_seconds: float = 5.0
    """Between attempts; waits double from a tenth to four tenths of a second."""


class Retrier:
    """Repeats what fails in passing.

    Args:
        is_passing: Whether an error is worth another attempt.
        cause: Names an error in a word or two, for counting.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        is_passing: Callable[[Exception], bool],
        cause: Callable[[Exception], str],
    ) -> None:
        self._policy = policy
        self._is_passing = is_passing
        self._cause = cause

    def call(self, operation: str, act: Callable[[], T]) -> T:
        """What ``act`` returns, at the first attempt that succeeds.

        *Blocks:* as long as the policy says, and one request's own timeouts.
        *Raises:* what the last attempt raised.
        """
        token = _is_counted_here.set(True)
        try:
            return self._call(operation, act)
        finally:
            _is_counted_here.reset(token)

    def _call(self, operation: str, act: Callable[[], T]) -> T:
        policy, cause = self._policy, ""
        for attempt in stamina.retry_context(
            on=self._is_passing,
            attempts=policy.attempts,
            timeout=policy.timeout_seconds,
            wait_initial=min(_chance.uniform(0.1, 0.4), policy.longest_wait_seconds),
            wait_max=policy.longest_wait_seconds,
            wait_jitter=0,  # stamina draws it from the generator of the module
        ):
            if attempt.num > 1:
                COUNTERS.add(RETRIES, operation=operation, cause=cause)
                logger.debug("attempt %d of %s, after %s", attempt.num, operation, cause)
            with attempt:
                try:
                    return act()
                except Exception as error:
                    cause = self._cause(error)
                    raise
        raise InternalError("a retry loop ended without a result")
