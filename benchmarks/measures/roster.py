"""The peers that still take part in a launch."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from benchmarks.peers import PEERS, Context, Peer, report_notes
from benchmarks.ranks import PeerFailedError, Rows

T = TypeVar("T")


class Roster:
    """Peers by turns. One that fails is reported once and left out from then on.

    *Ranks:* all methods are collective.
    """

    def __init__(self, context: Context, rows: Rows) -> None:
        self.context = context
        self.rows = rows
        self._live: list[Peer] = []
        for name in context.scenario.peers:
            refusal = PEERS[name].refusal(context.scenario)
            if refusal:
                rows.write_problem(name, f"skipped: {refusal}")
                continue
            try:
                self._live.append(context.ranks.attempt(lambda: PEERS[name](context)))  # noqa: B023  # called at once
            except PeerFailedError as error:
                rows.write_problem(name, str(error))

    def turns(self, repetitions: int) -> Iterator[tuple[int, Peer]]:
        """The first round of every peer, then the second: what slows the machine slows them all.

        Round 0 comes before the counted ones.
        """
        for repetition in range(repetitions + 1):
            for peer in tuple(self._live):
                if peer in self._live:
                    yield repetition, peer

    def attempt(self, peer: Peer, work: Callable[[], T]) -> T | None:
        """Let the peer do it; ``None`` and out if it fails on any rank."""
        try:
            return self.context.ranks.attempt(work)
        except PeerFailedError as error:
            self.drop(peer, str(error))
            return None

    def succeeds(self, peer: Peer, work: Callable[[], object]) -> bool:
        """As :meth:`attempt`, for work that returns nothing."""

        def work_and_say_so() -> bool:
            work()
            return True

        return self.attempt(peer, work_and_say_so) is True

    def drop(self, peer: Peer, problem: str) -> None:
        """The peer takes no further part."""
        self.rows.write_problem(peer.name, problem)
        self._live.remove(peer)

    def report(self, peer: Peer, work: str, repetition: int, **metrics: float | None) -> None:
        """One measurement of this rank, with what only the peer knows."""
        self.rows.write(peer.name, work, repetition, **metrics, **report_notes(peer))

    def close(self) -> None:
        for peer in tuple(self._live):
            if self.succeeds(peer, peer.close) and (summary := peer.summary()):
                self.rows.write(peer.name, "summary", 1, **summary)
