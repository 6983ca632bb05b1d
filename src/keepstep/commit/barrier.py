"""How the ranks of one attempt meet: posts to the coordinator, answers to the ranks.

The barrier runs over a small key-value store (c10d's in production), never over a collective: a
save may go on in the background while the training group is busy, and a rank that died is named
instead of hanging its peers. Every key holds the attempt's id, so that what a dead attempt left
behind is never read. A failure on any rank reaches all ranks as the same error.

A wait ends when the rank that is waited for has given no sign of life for the timeout. Writing is a
sign of life: a large save may take longer than the timeout, a stuck one may not. Waiting for a
store is one as well, for a while.

Waiting for the training loop is one without end: between two steps it may evaluate for long. But it
may also be in a collective with a rank that leaves, and waits here for the outcome. So a rank whose
process waits for the outcome says so, and from then on the others' loops have the timeout to come.
"""

import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from keepstep.errors import (
    BarrierTimeout,
    CommitAborted,
    CoordinationError,
    InternalError,
    KeepstepError,
)
from keepstep.world import World

_GOOD, _BAD = b"+", b"-"
_LIFE_INTERVAL_SECONDS = 1.0
_HURRIED_SECONDS = 5.0


_Heard = dict[int, tuple[bytes | None, float]]
"""By rank: its last sign of life, and when that was first seen."""


class Store(Protocol):
    """What the barrier needs of a key-value store shared by all ranks."""

    def set(self, key: str, value: bytes) -> None: ...

    def wait(self, key: str, timeout_seconds: float) -> bytes | None:
        """The value, as soon as it is there; ``None`` once the time is over."""
        ...

    def delete(self, key: str) -> None: ...


class CommitBarrier:
    """The meeting point of one attempt. One object per rank and attempt.

    A *topic* is one round: every rank posts, the coordinator collects all posts and answers every
    rank.

    Args:
        scope: Prefix of all keys; holds the attempt's id.
        timeout_seconds: The longest that a rank may be waited for without a sign of life.
        is_hurried: Whether this process will be stopped soon: then a rank that is silent for some
            seconds counts as dead. It may well be, and be the reason.
        is_awaited: Whether this process waits for the outcome before it does anything else.
    """

    def __init__(
        self,
        store: Store,
        *,
        world: World,
        scope: str,
        step: int,
        timeout_seconds: float,
        is_hurried: Callable[[], bool] = lambda: False,
        is_awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._world = world
        self._scope = scope
        self._step = step
        self._timeout_seconds = timeout_seconds
        self._is_hurried = is_hurried
        self._is_awaited = is_awaited
        self._has_urged = False
        self._lives = 0
        self._lived_at = 0.0
        self._worked_at = 0.0
        self._living = threading.Lock()
        self._life_seconds = min(_LIFE_INTERVAL_SECONDS, timeout_seconds / 4)

    def alive(self) -> None:
        """Give a sign of life, at most once a second. *Ranks:* local, while at work."""
        self._worked_at = time.monotonic()
        self._live()

    @contextmanager
    def kept_alive(self, patience_seconds: float) -> Iterator[None]:
        """Give signs of life from a thread, while this rank may be waiting for the store.

        It stops after ``patience_seconds`` without :meth:`alive`: who hangs must be missed.

        *Ranks:* local.
        """
        has_ended = threading.Event()
        self._worked_at = time.monotonic()

        def live() -> None:
            with suppress(CoordinationError):  # what follows will find out
                while not has_ended.wait(self._life_seconds):
                    if time.monotonic() - self._worked_at > patience_seconds:
                        return
                    self._live()

        thread = threading.Thread(target=live, name="keepstep-alive", daemon=True)
        with suppress(RuntimeError):  # the interpreter is ending: then without
            thread.start()
        try:
            yield
        finally:
            has_ended.set()
            if thread.ident is not None:
                thread.join()

    def _live(self) -> None:
        with self._living:
            now = time.monotonic()
            if now - self._lived_at >= self._life_seconds:
                self._lives += 1
                self._lived_at = now
                self._store.set(self._life_key(self._world.rank), b"%d" % self._lives)

    def await_loop(self, is_ready: Callable[[float], bool]) -> None:
        """Return once this rank's training loop has come by. *Ranks:* all.

        Args:
            is_ready: Whether it has; waits for so many seconds.

        *Raises:* ``CommitAborted`` if another process waits for the outcome, and this loop does not
        come for the timeout.
        """
        urged_at = math.inf
        while not is_ready(self._life_seconds):
            self.alive()
            if urged_at == math.inf and self._store.wait(self._urge_key, 0) is not None:
                urged_at = time.monotonic()
            if time.monotonic() - urged_at > self._patience_seconds:
                raise CommitAborted(
                    f"another rank waits for step {self._step} to be committed, and for "
                    f"{self._patience_seconds:.0f} s the loop of this one has come neither to "
                    "`with session.guard():` nor to wait; a wait for a save in overlap mode is for "
                    "all ranks",
                    step=self._step,
                )

    def post(self, topic: str, produce: Callable[[], bytes]) -> None:
        """Post what ``produce`` returns, or the exception it raises.

        *Ranks:* all. *Raises:* nothing that ``produce`` raises: the answer will tell.
        """
        try:
            message = _GOOD + produce()
        except Exception as error:  # noqa: BLE001  # the coordinator decides what it means
            message = _BAD + pickle.dumps(_portable(error, self._world.rank))
        self._store.set(self._key(topic, "post", self._world.rank), message)

    def collect(self, topic: str) -> list[bytes]:
        """All ranks' posts, by rank.

        *Ranks:* coordinator. *Blocks:* until all have posted, or one gives no sign of life.
        *Raises:* ``CommitAborted`` with every failure that was posted, or naming the ranks that
        posted nothing.
        """
        ranks = range(self._world.world_size)
        posts: dict[int, bytes] = {}
        heard: _Heard = {}
        for rank in ranks:
            key = self._key(topic, "post", rank)
            message = self._wait(key, rank, heard, others=ranks[rank + 1 :])
            if message is not None:
                posts[rank] = message
                self._store.delete(key)
        failures = {rank: pickle.loads(p[1:]) for rank, p in posts.items() if p[:1] == _BAD}
        if failures:
            raise _merged(failures, self._step)
        if missing := [rank for rank in ranks if rank not in posts]:
            raise CommitAborted(
                f"waited {self._patience_seconds:.0f} s for {_listed(missing)} at step "
                f"{self._step}, phase {topic}",
                step=self._step,
            )
        return [posts[rank][1:] for rank in ranks]

    def answer(self, topic: str, produce: Callable[[], Sequence[bytes]]) -> None:
        """Give each rank its answer from what ``produce`` returns, or the exception it raises.

        *Ranks:* coordinator. *Raises:* nothing that ``produce`` raises: :meth:`await_answer` will.
        """
        size = self._world.world_size
        try:
            answers = [_GOOD + answer for answer in produce()]
            if len(answers) != size:
                raise InternalError(  # noqa: TRY301  # to be told to every rank
                    f"{len(answers)} answers for {size} ranks"
                )
        except Exception as error:  # noqa: BLE001  # every rank must hear of it
            answers = [_BAD + pickle.dumps(_portable(error, self._world.rank))] * size
        for rank, answer in enumerate(answers):
            self._store.set(self._key(topic, "answer", rank), answer)

    def await_answer(self, topic: str) -> bytes:
        """This rank's answer.

        *Ranks:* all. *Blocks:* until the coordinator answers, or gives no sign of life.
        *Raises:* the error the coordinator answered with; ``BarrierTimeout`` if it fell silent.
        """
        key = self._key(topic, "answer", self._world.rank)
        message = self._wait(key, 0)
        if message is None:
            raise BarrierTimeout(
                f"waited {self._patience_seconds:.0f} s for the coordinator (rank 0) at step "
                f"{self._step}, phase {topic}",
                step=self._step,
            )
        self._store.delete(key)
        if message[:1] == _BAD:
            raise pickle.loads(message[1:])
        return message[1:]

    def close(self) -> None:
        """Remove this rank's sign of life, and what else it has left."""
        with suppress(KeepstepError):  # whoever kept the store may have left already
            if self._lives:
                self._store.delete(self._life_key(self._world.rank))
            if self._has_urged:
                self._store.delete(self._urge_key)

    def _wait(
        self,
        key: str,
        rank: int,
        heard: _Heard | None = None,
        others: Sequence[int] = (),
    ) -> bytes | None:
        """The value of a key that ``rank`` sets, or ``None`` once it seems dead.

        Args:
            heard: Of this rank and others, as far as they were listened for; kept up to date.
            others: Whose turn it is next: who is silent meanwhile has used up its time then.
        """
        heard = {} if heard is None else heard
        slice_seconds = min(_LIFE_INTERVAL_SECONDS, self._timeout_seconds / 4)
        heard_at = self._listen(rank, heard) if rank in heard else time.monotonic()
        while True:
            remaining = heard_at + self._patience_seconds - time.monotonic()
            message = self._store.wait(key, max(0.0, min(slice_seconds, remaining)))
            if message is not None or remaining <= 0:
                return message
            self.alive()  # waiting for another is a sign of life as well
            self._urge()
            heard_at = self._listen(rank, heard)
            for other in others:
                if other not in heard:
                    self._listen(other, heard)

    def _listen(self, rank: int, heard: _Heard) -> float:
        """When a rank's last sign of life was first seen, or when it was first listened for."""
        life = self._store.wait(self._life_key(rank), 0)
        if rank not in heard or heard[rank][0] != life:
            heard[rank] = (life, time.monotonic())
        return heard[rank][1]

    def _urge(self) -> None:
        if not self._has_urged and self._is_awaited():
            self._has_urged = True
            self._store.set(self._urge_key, b"")

    @property
    def _patience_seconds(self) -> float:
        is_hurried = self._is_hurried()
        return min(self._timeout_seconds, _HURRIED_SECONDS if is_hurried else math.inf)

    def _key(self, topic: str, direction: str, rank: int) -> str:
        return f"{self._scope}/{topic}/{direction}/{rank}"

    @property
    def _urge_key(self) -> str:
        return f"{self._scope}/urge"

    def _life_key(self, rank: int) -> str:
        return f"{self._scope}/alive/{rank}"


def _portable(error: Exception, rank: int) -> KeepstepError:
    """An error that survives pickling whole and says on which rank it arose."""
    if isinstance(error, KeepstepError):
        if error.rank is None:
            error.rank = rank
        return error
    text = f"{type(error).__name__}: {error}"
    return CommitAborted(text, failures={rank: text}, rank=rank)


def _merged(failures: dict[int, KeepstepError], step: int) -> KeepstepError:
    """One error that tells all of them; an internal error stays one."""
    for error in failures.values():
        if isinstance(error, InternalError):
            return error
    texts = {rank: str(error.args[0]) for rank, error in failures.items()}
    first = min(texts)
    return CommitAborted(
        f"{_listed(sorted(texts))} failed: {texts[first]}", failures=texts, step=step
    )


def _listed(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
