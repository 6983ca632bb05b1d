"""The thread that keeps this node's heartbeat and view of the roster up to date."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from keepstep.elastic.rendezvous.link import STORE_ERRORS, Link, first_line
from keepstep.elastic.rendezvous.liveness import Liveness
from keepstep.elastic.rendezvous.roster import Roster, in_words, restored
from keepstep.elastic.rendezvous.rules import Bounds, Times, may_call, may_form
from keepstep.elastic.rendezvous.settings import Settings

logger = logging.getLogger("keepstep.elastic")

_HUNG_SECONDS = 10.0
"""A store call that takes longer is given up: its machine has vanished from the network."""
_LONGEST_BACK_OFF_SECONDS = 2.0
_PARDON_SECONDS = 2 * _LONGEST_BACK_OFF_SECONDS
"""After an outage of the store, how much longer than usual others may take to show up again."""
_HASTE_SECONDS = 0.1
"""Between two looks while a round is being formed."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What this node wants to be in the roster."""

    is_joining: bool = False
    """Wants to be in a round later than ``after``."""
    after: int = 0
    meeting_point: str = ""
    """As rank 0 of the round ``after``: where its workers meet."""
    is_ready: bool = False
    """Has reached the meeting point of the round ``after``."""
    is_leaving: bool = False
    is_complete: bool = False


@dataclass(frozen=True, slots=True)
class Sight:
    """What was last seen, and when, on the monotonic clock."""

    roster: Roster = field(default_factory=Roster)
    times: Times = field(default_factory=lambda: Times(0.0, {}, None, None))
    is_connected: bool = False
    lost_since: float = 0.0
    trouble: str = "not connected yet"
    wish: Wish = Wish()
    """Of this node, as far as the roster shows it."""


class Keeper:
    """Applies this node's wish to the roster, and shows what became of it.

    Only its thread talks to the store, so that nobody else can be held up by it. A thread that
    does not return from a store call is replaced.

    *Ranks:* local; any thread may call.
    """

    def __init__(
        self,
        node: str,
        bounds: Bounds,
        settings: Settings,
        dial: Callable[[], Link],
        committed_at: Callable[[], float | None],
    ) -> None:
        self._node = node
        self._bounds = bounds
        self._settings = settings
        self._dial = dial
        self._committed_at = committed_at
        self._wish = Wish()
        self._sight = Sight(lost_since=time.monotonic())
        self._known: Roster | None = None
        self._arrivals: dict[str, float] = {}
        self._departure: tuple[tuple[str, ...], float] | None = None
        self._liveness = Liveness(settings.heartbeat_timeout)
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        self._thread_number = 0
        self._is_stopped = False
        self._busy_since: float | None = None
        self._start_thread()

    @property
    def sight(self) -> Sight:
        self._replace_hung_thread()
        with self._changed:
            return self._sight

    def want(self, wish: Wish) -> None:
        with self._changed:
            self._wish = wish
        self._hurry.set()

    def wait(self, seconds: float) -> Sight:
        """*Blocks:* until something new has been seen, at most so long."""
        with self._changed:
            self._changed.wait(seconds)
        return self.sight

    def stop(self) -> None:
        """End the thread; one that hangs is left behind."""
        self._is_stopped = True
        self._thread_number += 1
        self._hurry.set()
        self._thread.join(timeout=2.0)

    def _start_thread(self) -> None:
        self._thread_number += 1
        self._busy_since = None
        self._thread = threading.Thread(
            target=self._run, args=(self._thread_number,), name="keepstep-rendezvous", daemon=True
        )
        self._thread.start()

    def _replace_hung_thread(self) -> None:
        busy_since = None if self._is_stopped else self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > _HUNG_SECONDS:
            self._note_trouble(f"the store has not answered for {_HUNG_SECONDS:g} s")
            self._start_thread()

    def _run(self, thread_number: int) -> None:
        link: Link | None = None
        back_off = _HASTE_SECONDS
        beaten_at = 0.0
        while thread_number == self._thread_number:
            self._hurry.clear()
            self._busy_since = time.monotonic()
            try:
                if link is None:
                    link = self._dial()
                    if self._known is not None:
                        self._liveness.pardon(time.monotonic() + _PARDON_SECONDS)
                if time.monotonic() - beaten_at >= self._settings.heartbeat_interval:
                    link.beat(self._node)
                    beaten_at = time.monotonic()
                self._look(link, thread_number)
                back_off = _HASTE_SECONDS
                pause = _HASTE_SECONDS if self._is_in_haste() else self._pause(beaten_at)
            except STORE_ERRORS as error:
                if thread_number != self._thread_number:
                    return
                link = None
                self._note_trouble(first_line(error))
                pause = back_off = min(2 * back_off, _LONGEST_BACK_OFF_SECONDS)
            if thread_number == self._thread_number:
                self._busy_since = None
                self._hurry.wait(pause)

    def _pause(self, beaten_at: float) -> float:
        return max(0.0, beaten_at + self._settings.heartbeat_interval - time.monotonic())

    def _is_in_haste(self) -> bool:
        roster, wish = self._sight.roster, self._wish
        is_forming = not roster.members or roster.is_called or bool(roster.returned)
        is_meeting = roster.round == wish.after and not roster.is_whole
        return wish.is_leaving or (wish.is_joining and is_forming) or is_meeting

    def _look(self, link: Link, thread_number: int) -> None:
        """Read the roster, change it as this node wishes and the rules allow, show the result."""
        found = link.read()
        roster = restored(self._known, found)
        beats = link.beats(roster.nodes)
        if thread_number != self._thread_number:
            return
        silent = self._liveness.look(beats, time.monotonic()) - {self._node}
        while thread_number == self._thread_number:
            with self._changed:
                wish = self._wish
            wanted = self._improved(roster, silent, wish)
            if found == wanted or link.replace(found, wanted):
                self._show(wanted, self._times(wanted), wish)
                return
            found = link.read()  # another node was quicker
            roster = restored(self._known, found)

    def _improved(self, roster: Roster, silent: frozenset[str], wish: Wish) -> Roster:
        """The roster as it should be, as far as this node has a say in it."""
        lost = silent & set(roster.nodes)
        if lost:
            logger.warning("no sign of life from %s: taken for dead", in_words(lost))
            roster = roster.without(lost)
        roster = _granted(roster, self._node, wish)
        times = self._times(roster)
        if self._node in roster.joining and may_form(roster, self._bounds, times, self._settings):
            return roster.with_round_formed(self._bounds.max_nodes)
        if self._node in roster.members and may_call(roster, self._bounds, times, self._settings):
            return roster.called()
        return roster

    def _times(self, roster: Roster) -> Times:
        now = time.monotonic()
        self._arrivals = {node: self._arrivals.get(node, now) for node in roster.joining}
        if not roster.departed:
            self._departure = None
        elif self._departure is None or self._departure[0] != roster.departed:
            self._departure = (roster.departed, now)
        departure = self._departure[1] if self._departure else None
        return Times(now, dict(self._arrivals), departure, self._committed_at())

    def _show(self, roster: Roster, times: Times, wish: Wish) -> None:
        with self._changed:
            if not self._sight.is_connected and self._known is not None:
                logger.warning("the rendezvous store is back")
            self._known = roster
            self._sight = Sight(roster, times, is_connected=True, trouble="", wish=wish)
            self._changed.notify_all()

    def _note_trouble(self, trouble: str) -> None:
        with self._changed:
            now = time.monotonic()
            if self._sight.is_connected:
                logger.warning("the rendezvous store is away (%s); workers go on", trouble)
                self._sight = replace(self._sight, is_connected=False, lost_since=now)
            self._sight = replace(self._sight, trouble=trouble)
            self._changed.notify_all()


def _granted(roster: Roster, node: str, wish: Wish) -> Roster:
    """The roster with one node's wish come true."""
    if wish.is_complete:
        roster = roster.completed()
    if wish.is_leaving or wish.is_complete:
        return roster.without([node])
    if wish.is_joining:
        is_formed = roster.round > wish.after and node in roster.formed
        return roster if is_formed or roster.is_complete else roster.with_joining(node)
    if roster.round != wish.after or node not in roster.members:
        return roster
    if wish.meeting_point and not roster.meeting_point:
        roster = roster.with_meeting_point(wish.meeting_point)
    return roster.with_ready(node) if wish.is_ready else roster
