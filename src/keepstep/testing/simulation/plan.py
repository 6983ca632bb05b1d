"""What happens in a history, and when: drawn from a seed, and nothing else."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random


class Kind(StrEnum):
    """What can happen at an operation. docs/simulation.md says what each stands for."""

    KILL = "kill"
    KILL_JOB = "kill job"
    STOP = "stop"
    STOP_JOB = "stop job"
    CUT_POWER = "cut power"
    FAIL = "fail"
    FULL = "full"
    OUTAGE = "outage"
    LOSE_REPLY = "lose reply"
    REPEAT = "repeat"
    DELAY = "delay"
    STALL = "stall"
    GARBLE = "garble"
    LOSE_STORE = "lose store"
    DAMAGE = "damage"
    PRUNE = "prune"
    ROLL_BACK = "roll back"
    PIN = "pin"
    UNPIN = "unpin"
    READ = "read"
    RIVAL = "rival"


ON_DISK = frozenset({Kind.CUT_POWER})
ON_OBJECTS = frozenset({Kind.REPEAT, Kind.DELAY, Kind.LOSE_REPLY})

_COMMON = tuple(kind for kind in Kind if kind not in ON_DISK | ON_OBJECTS)
_KINDS = {
    True: (*_COMMON, *ON_DISK, Kind.KILL, Kind.CUT_POWER, Kind.STOP_JOB, Kind.PRUNE),
    False: (*_COMMON, *sorted(ON_OBJECTS), Kind.KILL, Kind.DELAY, Kind.STOP_JOB, Kind.PRUNE),
}
_OPERATIONS_PER_SAVE = 60
_POLICIES = ("last=1", "last=2", "last=3", "last=1,every=40steps", "last=1,best=loss:min", "all")


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """Something that happens at the first operation from ``at`` on to which it can happen."""

    at: int
    kind: Kind
    number: int = 0
    """Chooses among what the kind leaves open."""

    def __str__(self) -> str:
        return f"{self.kind} at {self.at} ({self.number})"


@dataclass(frozen=True, slots=True)
class Plan:
    """One history."""

    seed: int
    is_disk: bool
    world_size: int
    saves: int
    """So many are tried before the last recovery, by whatever number of jobs."""
    keep: str
    operations_per_switch: float
    """How long an actor goes on, on average, before another may."""
    is_reordered: bool
    events: tuple[Event, ...]
    schedule: int = 0
    """Chooses another order of what happens at the same time."""

    def __str__(self) -> str:
        store = "directory" if self.is_disk else "object store"
        return (
            f"seed {self.seed}: {self.world_size} ranks, {self.saves} saves, {store}, "
            f"keep={self.keep}, a switch every {self.operations_per_switch:g} operations, "
            f"{len(self.events)} events"
        )


def draw_plan(seed: int) -> Plan:
    """The history of a seed."""
    random = Random(f"plan {seed}")
    is_disk = random.random() < 0.5
    saves = random.randint(6, 14)
    kinds = _KINDS[is_disk]
    span = saves * _OPERATIONS_PER_SAVE
    count = min(12, int(random.expovariate(1 / 3.5)))
    events = [
        Event(random.randint(1, span), random.choice(kinds), random.randrange(1 << 16))
        for _ in range(count)
    ]
    is_crowded = random.random() < 0.25
    if is_crowded:
        events += _crowd(random, span)
    return Plan(
        seed=seed,
        is_disk=is_disk,
        world_size=random.choice((1, 2, 2, 2, 3)),
        saves=saves,
        keep="last=1" if is_crowded else random.choice(_POLICIES),
        operations_per_switch=random.choice((4, 12) if is_crowded else (4, 12, 40, 150)),
        is_reordered=random.random() < 0.2,
        events=tuple(sorted(_with_one(Kind.GARBLE, events))),
    )


def _crowd(random: Random, span: int) -> list[Event]:
    """Starts, prunes and going back at nearly the same time, while a job goes on training."""
    around = random.randint(span // 4, span)
    kinds = (Kind.RIVAL, Kind.RIVAL, Kind.PRUNE, Kind.PRUNE, Kind.ROLL_BACK, Kind.STALL, Kind.STOP)
    return [
        Event(max(1, around + random.randint(-60, 60)), kind, random.randrange(1 << 16))
        for kind in (Kind.RIVAL, Kind.PRUNE, *random.choices(kinds, k=3))
    ]


def _with_one(kind: Kind, events: list[Event]) -> list[Event]:
    """A block that arrives damaged twice is damaged."""
    first = next((event for event in events if event.kind is kind), None)
    return [event for event in events if event.kind is not kind or event is first]
