"""Removing what need not be kept, in the background of training."""

import logging
import threading

from keepstep.commit.pruning import Plan, Pruner
from keepstep.config.keep import KeepPolicy
from keepstep.errors import FencedError, KeepstepError
from keepstep.observability.ledger import Ledger
from keepstep.storage.base import Storage

logger = logging.getLogger("keepstep.retention")

_PATIENCE_SECONDS = 30.0
"""The longest that the end of a session waits for it: whoever is preempted has little time, and a
prune that is cut off is ended by the next."""


class Retention:
    """Prunes after commits, one prune at a time. *Ranks:* coordinator.

    Whatever fails is logged; the next commit is the next chance.
    """

    def __init__(
        self, storage: Storage, policy: KeepPolicy, ledger: Ledger, *, generation: int
    ) -> None:
        self._pruner = Pruner(storage, generation=generation)
        self._policy = policy
        self._ledger = ledger
        self._changed = threading.Condition()
        self._is_wanted = False
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def committed(self) -> None:
        """Have what need not be kept removed soon; returns at once."""
        if self._policy.keeps_all:
            return
        with self._changed:
            self._is_wanted = True
            if self._thread is None:
                # A daemon: a process that dies in the middle of it leaves nothing in disorder.
                self._thread = threading.Thread(
                    target=self._work, name="keepstep-retention", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def close(self, *, within_seconds: float = _PATIENCE_SECONDS) -> None:
        """Remove what the last commit allows. *Blocks:* for half a minute at most."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(max(0.0, min(within_seconds, _PATIENCE_SECONDS)))
            if self._thread.is_alive():
                logger.warning("checkpoints are still being removed; `keepstep prune` ends it")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_wanted or self._is_closed)
                if not self._is_wanted:
                    return
                self._is_wanted = False
            self._prune()

    def _prune(self) -> None:
        try:
            self._report(self._pruner.prune(self._policy))
        except FencedError as error:
            logger.info("%s", error)
        except KeepstepError as error:
            logger.warning("older checkpoints were not removed: %s", error)
        except Exception:  # training does not depend on it
            logger.exception("removing older checkpoints has failed")

    def _report(self, plan: Plan) -> None:
        if plan.removed:
            names = [decision.id.name for decision in plan.removed]
            self._ledger.record("prune", keep=str(self._policy), removed=names)
            steps = ", ".join(str(decision.id.step) for decision in plan.removed)
            logger.info("removed steps %s: keep=%s", steps, self._policy)
