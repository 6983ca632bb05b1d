"""Acts for jobs of several nodes: what is started, waited for and done, in so many words.

Who is meant is said by ``node 1``; ``rank 0`` for the node that runs it just then; ``same`` for the
one that was meant last; where there may be several, ``others`` for those that still run beside it,
and ``all`` for all that still run.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from keepstep.drills.scenario import Act, Ending

_PLAYERS = "keepstep.drills.players.nodes"


class Deed(StrEnum):
    """What befalls a node, or the store."""

    TELL = "tell"
    """SIGTERM to the agent, as a scheduler sends it."""
    KILL_AGENT = "kill agent"
    """SIGKILL to the agent alone."""
    KILL_NODE = "kill node"
    """SIGKILL to the agent and its workers."""
    FREEZE = "freeze"
    THAW = "thaw"
    CUT = "cut"
    """Packets from and to the node get lost."""
    HEAL = "heal"
    SET_CLOCK = "set clock"
    """A clock that was wrong is set right."""
    KILL_STORE = "kill store"
    START_STORE = "start store"


@dataclass(frozen=True, slots=True)
class Assemble(Act):
    """The machines of a job, each with an agent (``keepstep run``), and a store for them."""

    player: ClassVar[str] = f"{_PLAYERS}:play_assemble"

    count: int = 2
    min_nodes: int = 2
    failpoints: str = ""
    """Of all workers."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Of the job, beside those of the drill: none that make it compute something else."""
    conf: tuple[tuple[str, Any], ...] = ()
    """Of the rendezvous."""
    workers_per_node: int = 1
    absent: tuple[int, ...] = ()
    """Nodes that are not started with the others."""
    skew_seconds: tuple[float, ...] = ()
    """By node: how far its clock is ahead."""
    unimportable: tuple[tuple[int, str], ...] = ()
    """By node: a module that cannot be imported there."""
    max_restarts: int | None = None
    worlds: tuple[int, ...] = ()
    """How many ranks each start is to have, for a judge; none if that is left to chance."""

    @property
    def world_sizes(self) -> tuple[int, ...]:
        return self.worlds or (self.count * self.workers_per_node,)


@dataclass(frozen=True, slots=True)
class Join(Act):
    """Start a node's agent: a late one, or a new one in place of one that ended."""

    player: ClassVar[str] = f"{_PLAYERS}:play_join"

    who: str
    failpoints: str = ""


@dataclass(frozen=True, slots=True)
class Reach(Act):
    """Until a failpoint has acted at a step; a rank that it stops stands still."""

    player: ClassVar[str] = f"{_PLAYERS}:play_reach"

    site: str
    step: int | None = None
    ranks: int = 1
    """On how many ranks."""
    is_culprit: bool = False
    """Whether the rank is what is wrong, and does not only wait for something to befall it."""


@dataclass(frozen=True, slots=True)
class Release(Act):
    """Let stopped ranks go on."""

    player: ClassVar[str] = f"{_PLAYERS}:play_release"


@dataclass(frozen=True, slots=True)
class Befall(Act):
    """Do something to a node."""

    player: ClassVar[str] = f"{_PLAYERS}:play_befall"

    deed: Deed
    who: str = "store"


@dataclass(frozen=True, slots=True)
class Hear(Act):
    """Until agents have said something since it was last done."""

    player: ClassVar[str] = f"{_PLAYERS}:play_hear"

    who: str
    words: str


@dataclass(frozen=True, slots=True)
class Train(Act):
    """Until a generation has made a step."""

    player: ClassVar[str] = f"{_PLAYERS}:play_train"

    generation: int
    step: int = 1
    """At least so far."""


@dataclass(frozen=True, slots=True)
class Commit(Act):
    """Until a step is committed."""

    player: ClassVar[str] = f"{_PLAYERS}:play_commit"

    step: int
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class End(Act):
    """Until agents have ended, each as expected."""

    player: ClassVar[str] = f"{_PLAYERS}:play_end"

    ends: tuple[tuple[str, Ending], ...] = (("all", Ending.COMPLETE),)


def pace(
    first_step: int, last_step: int, *, seconds: float = 0.25, restart: int | str = "any"
) -> str:
    """Failpoints that make these steps take their time: what befalls a job has to meet it."""
    return ";".join(
        f"step.after=sleep:{seconds}@rank:0@step:{step}@restart:{restart}"
        for step in range(first_step, last_step + 1)
    )


def hold(step: int, restart: int | str = 0, rank: int = 0) -> str:
    """A failpoint at which a job waits, after a step, until it is let go on."""
    return f"step.after=stop@rank:{rank}@step:{step}@restart:{restart}"
