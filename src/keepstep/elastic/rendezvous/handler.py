"""What torchrun's agent talks to."""

import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from keepstep.elastic.rendezvous.keeper import Keeper, Sight, Wish
from keepstep.elastic.rendezvous.link import STORE_ERRORS, Dialer, Endpoint, connect, serve
from keepstep.elastic.rendezvous.roster import Roster, address_of, in_words
from keepstep.elastic.rendezvous.rules import Bounds, reason_to_rejoin
from keepstep.elastic.rendezvous.settings import Settings

logger = logging.getLogger("keepstep.elastic")

BACKEND = "keepstep"

_MISSES = 3
"""Rounds broken up by this node, before it goes so that the others can train."""

_LEAVE_SECONDS = 5.0
_CONNECT_SECONDS = 10.0
_ASSIGN_SECONDS = 60
"""How long the agent's own exchange, of which rank is where, may wait for a node."""


class _OutOfReach(Exception):
    """This node cannot connect to where the workers of its round meet."""

    def __init__(self, text: str, *, is_reached_by_others: bool) -> None:
        super().__init__(text)
        self.is_reached_by_others = is_reached_by_others


class KeepstepRendezvousHandler(RendezvousHandler):
    """Forms rounds of nodes; each has a number, and a fresh store for its workers to start from.

    *Ranks:* one per node, in torchrun's agent.

    Args:
        tell_workers: Called with variables for the environment of the workers that start next.
        committed_at: When, on the monotonic clock, workers here last reported a commit.
    """

    def __init__(
        self,
        params: RendezvousParameters,
        settings: Settings,
        endpoint: Endpoint,
        *,
        tell_workers: Callable[[Mapping[str, str]], None],
        committed_at: Callable[[], float | None],
    ) -> None:
        address = params.local_addr or socket.getfqdn()
        self._node = f"{address}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._run_id = params.run_id
        self._bounds = Bounds(params.min_nodes, params.max_nodes)
        self._settings = settings
        self._endpoint = endpoint
        self._tell_workers = tell_workers
        self._round = 0
        self._store: Store | None = None
        self._reason: str | None = None
        self._needed_since = 0.0
        self._give_up = 0.0
        """When to wait no longer for others."""
        self._short_until = 0.0
        """When too few nodes were seen last, in Unix seconds."""
        self._is_left = False
        dialer = Dialer(endpoint, params.run_id, is_host=settings.is_host)
        self._keeper = Keeper(self._node, self._bounds, settings, dialer.dial, committed_at)

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return self._run_id

    @property
    def use_agent_store(self) -> bool:
        """The agent of rank 0 hosts the workers' store: it is there before any worker is."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round. The round before it must have been stopped on this node.

        *Blocks:* until enough nodes are there, at most ``join_timeout``; ``store_timeout`` while
        no store answers.
        *Raises:* RendezvousTimeoutError, RendezvousConnectionError, either naming what was missing;
        SystemExit(0) once the job is complete, because nothing is left to do.
        """
        self._store = None  # the workers that used it are gone
        logger.info("%s waits for round %d or later", address_of(self._node), self._round + 1)
        self._needed_since = time.monotonic()
        self._give_up = self._needed_since + self._settings.join_timeout
        began = time.time()
        misses = 0
        while True:
            roster = self._await_round()
            try:
                info = self._meet(roster)
            except _OutOfReach as missed:
                misses += 1
                if misses >= _MISSES and missed.is_reached_by_others:
                    raise RendezvousConnectionError(f"{missed}: this node leaves") from missed
                info = None
            if info is not None:
                break
            logger.warning("round %d broke up before it was whole", roster.round)
        self._keeper.want(Wish(after=self._round))
        self._reason = None
        enough = max(began, self._short_until)
        self._tell_workers(
            {
                "KEEPSTEP_RENDEZVOUS": f"{began:.3f} {enough:.3f} {time.time():.3f}",
                "KEEPSTEP_ROUND": str(self._round),
                "KEEPSTEP_MIN_NODES": str(self._bounds.min_nodes),
                "KEEPSTEP_MAX_NODES": str(self._bounds.max_nodes),
            }
        )
        logger.info("round %d: node %d of %d", self._round, info.rank + 1, info.world_size)
        return info

    def num_nodes_waiting(self) -> int:
        """1 if the workers should be restarted for the sake of the others, else 0. Never blocks.

        Also for nodes that are gone: a survivor that waits for the next round waits for them too.
        While the store is away nothing is known, and training goes on.
        """
        sight = self._keeper.sight
        if not sight.is_connected:
            return 0
        reason = reason_to_rejoin(sight.roster, self._node, self._round, sight.times)
        if reason is not None and reason != self._reason:
            logger.warning("round %d ends: %s", self._round, reason)
            self._reason = reason
        return 0 if reason is None else 1

    def is_closed(self) -> bool:
        return self._keeper.sight.roster.is_complete

    def set_closed(self) -> None:
        self._keeper.want(Wish(is_complete=True))

    def shutdown(self) -> bool:
        """Leave; and if the job has succeeded, say so to all. Other nodes go on without this one.

        The agent calls this on its way out. It passes no outcome, but on the way out of an error
        that error is what the interpreter is handling.
        """
        return self.leave(is_complete=sys.exc_info()[1] is None)

    def others_go_on(self, *, within_seconds: float) -> bool:
        """Leave the round, and look whether other nodes come together for a later one.

        *Blocks:* until that is known, at most so long.
        """
        self._keeper.want(Wish(is_leaving=True))
        give_up = time.monotonic() + within_seconds
        while (remaining := give_up - time.monotonic()) > 0:
            sight = self._keeper.sight
            roster = sight.roster
            if sight.is_connected and sight.wish.is_leaving:
                if roster.joining or roster.round > self._round or roster.is_complete:
                    return True
                if not roster.members:
                    return False
            self._keeper.wait(min(1.0, remaining))
        return False

    def leave(self, *, is_complete: bool = False) -> bool:
        """*Blocks:* until the others can see it, at most five seconds; whether they can."""
        if self._is_left:
            return True
        self._is_left = True
        known = self._keeper.sight
        if not known.is_connected and self._node not in known.roster.nodes and not is_complete:
            self._keeper.stop()  # nobody has heard of this node
            return True
        self._keeper.want(Wish(is_leaving=True, is_complete=is_complete))
        give_up = time.monotonic() + _LEAVE_SECONDS
        sight = self._keeper.sight
        while not self._has_left(sight, is_complete=is_complete) and time.monotonic() < give_up:
            sight = self._keeper.wait(give_up - time.monotonic())
        self._keeper.stop()
        self._store = None
        has_left = self._has_left(sight, is_complete=is_complete)
        if has_left:
            logger.info("left run %s%s", self._run_id, ", which is complete" * is_complete)
        else:
            logger.warning("left run %s without a word: %s", self._run_id, sight.trouble)
        return has_left

    def _has_left(self, sight: Sight, *, is_complete: bool) -> bool:
        roster = sight.roster
        if roster.is_complete and not sight.is_connected:
            return True  # whoever hosted the store has gone, as all do now
        is_told = roster.is_complete or not is_complete
        return sight.is_connected and sight.wish.is_leaving and is_told

    def _await_round(self) -> Roster:
        """Join; the first round later than the last one that this node is in."""
        after = self._round
        self._keeper.want(Wish(is_joining=True, after=after))
        sight = self._keeper.sight
        while True:
            roster = sight.roster
            if self._is_left:
                raise RendezvousClosedError(f"this node has left run {self._run_id}")
            if roster.is_complete:
                logger.warning("run %s is complete: nothing is left to do", self._run_id)
                raise SystemExit(0)
            if sight.is_connected and roster.round > after and self._node in roster.formed:
                self._round = roster.round
                return roster
            if len(set(roster.members) | set(roster.joining)) < self._bounds.min_nodes:
                self._short_until = time.time()
            if len(roster.members) >= self._bounds.max_nodes:  # a spare: its wait has yet to begin
                self._give_up = time.monotonic() + self._settings.join_timeout
            if time.monotonic() > self._give_up:
                raise RendezvousTimeoutError(self._say_who_is_missing(roster))
            self._check_store(sight)
            sight = self._keeper.wait(1.0)

    def _meet(self, roster: Roster) -> RendezvousInfo | None:
        """Reach the round's meeting point, as all of its nodes do; None if the round breaks up.

        *Raises:* _OutOfReach.
        """
        self._store = None
        rank = roster.formed.index(self._node)
        wish = Wish(after=self._round)
        if rank == 0:
            address = address_of(self._node)
            try:
                self._store = serve(address, 0)
            except STORE_ERRORS as error:
                raise RendezvousConnectionError(
                    f"this node cannot be reached by others as {address}: {error}; give an address "
                    "of its own with --local-addr"
                ) from error
            wish = Wish(after=self._round, meeting_point=f"{address}:{self._store.port}")
        self._keeper.want(wish)
        sight = self._await(lambda seen: bool(seen.meeting_point))
        if sight is None:
            return None
        host, _, port = sight.roster.meeting_point.rpartition(":")
        try:
            if self._store is None:
                self._store = connect(Endpoint(host, int(port)), _CONNECT_SECONDS)
        except STORE_ERRORS as error:
            now = self._keeper.sight.roster
            others = set(now.ready) - {roster.formed[0]} if now.round == self._round else set()
            text = f"rank 0 of round {self._round}, at {host}:{port}, is out of reach: {error}"
            logger.warning("%s", text)
            raise _OutOfReach(text, is_reached_by_others=bool(others)) from error
        self._store.set_timeout(timedelta(seconds=_ASSIGN_SECONDS))
        self._keeper.want(Wish(after=self._round, is_ready=True))
        if self._await(lambda seen: seen.is_whole) is None:
            self._store = None
            return None
        store = PrefixStore("agent", self._store)
        return RendezvousInfo(store, rank, len(roster.formed), RendezvousStoreInfo(host, int(port)))

    def _await(self, is_so: Callable[[Roster], bool]) -> Sight | None:
        """Wait for something of this round; None if it breaks up, or after the time."""
        sight = self._keeper.sight
        while True:
            roster = sight.roster
            if roster.round != self._round:
                return None
            if is_so(roster):
                return sight
            if set(roster.members) != set(roster.formed) or time.monotonic() > self._give_up:
                return None
            self._check_store(sight)
            sight = self._keeper.wait(1.0)

    def _check_store(self, sight: Sight) -> None:
        # However long it was away while nobody needed it.
        away = time.monotonic() - max(sight.lost_since, self._needed_since)
        if not sight.is_connected and away > self._settings.store_timeout:
            raise RendezvousConnectionError(
                f"no rendezvous store at {self._endpoint} for {away:.0f} s ({sight.trouble}): "
                "start one there with `keepstep store`, or correct --rdzv-endpoint"
            )

    def _say_who_is_missing(self, roster: Roster) -> str:
        return (
            f"waited {self._settings.join_timeout:g} s for round {roster.round + 1} of run "
            f"{self._run_id}: it needs {self._bounds.min_nodes} node(s); joining: "
            f"{in_words(roster.joining)}; still in round {roster.round}: {in_words(roster.members)}"
        )
