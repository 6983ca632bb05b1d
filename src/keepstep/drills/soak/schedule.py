"""Which faults a soak meets, in which order: a pure function of the seed.

A *round* is one incarnation of the job's ranks: quiet faults, which training survives, and an end,
which it does not. A *sortie* is one launcher from its start to its end: rounds that the launcher
itself recovers from, and a last one that ends the launcher as well.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from keepstep.drills.catalog.victims import victim

WORLD_SIZE = 2

_SAVE_SITES = (
    *("plan.before", "plan.after", "stage.before", "stage.after", "write.before", "write.middle"),
    *("write.after", "arrive.before", "arrive.after", "publish.before", "publish.middle"),
    *("publish.after", "depart.before", "depart.after"),
)
_LOAD_SITES = ("load.middle", "load.after")

QUIET_STORE = ("full-disk", "io-error", "slow-rank")
QUIET_NETWORK = ("slow-down", "server-error", "reset", "lost-reply")
ROUND_ENDS = ("kill-in-save", "kill-in-step", "kill-in-load", "kill-any", "stop")
SORTIE_ENDS = ("preempt", "kill-agent", "damage")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is to go wrong."""

    kind: str
    rank: int = 0
    site: str = ""
    """Where it happens by itself; empty where it comes from outside."""
    passes: int = 1
    """At which passing of the site."""
    delay_seconds: float = 0.0
    """From outside: after training has begun. ``slow-rank``: how long."""


@dataclass(frozen=True, slots=True)
class Round:
    """One incarnation."""

    quiet: tuple[Fault, ...]
    end: Fault


Sortie = tuple[Round, ...]


def sorties(seed: int, *, has_proxy: bool) -> Iterator[Sortie]:
    """Without end."""
    chance = random.Random(f"soak/{seed}")
    while True:
        rounds = [_round(chance, has_proxy=has_proxy) for _ in range(chance.randint(2, 6))]
        yield (*rounds, _last_round(chance, has_proxy=has_proxy))


def rules(sortie: Sortie) -> str:
    """The failpoints of a sortie: faults that happen by themselves, and marks for the others.

    The mark of a round is written when its training is under way.
    """
    found: list[str] = []
    for number, each in enumerate(sortie):
        where = f"restart:{number}"
        found.append(f"step.after=sleep:0@rank:0@pass:2@{where}")
        for fault in (*each.quiet, each.end):
            if fault.site in _LOAD_SITES:  # the first start loads nothing, and must end as well
                found.append(f"step.after=kill@rank:{fault.rank}@pass:30@{where}")
            if fault.site:
                action = _ACTIONS[fault.kind].format(seconds=fault.delay_seconds)
                condition = f"rank:{fault.rank}@pass:{fault.passes}@{where}"
                found.append(f"{fault.site}={action}@{condition}")
    return ";".join(found)


_ACTIONS = {
    "full-disk": "raise:ENOSPC",
    "io-error": "raise:EIO",
    "slow-rank": "sleep:{seconds}",
    "kill-in-save": "kill",
    "kill-in-step": "kill",
    "kill-in-load": "kill",
    "stop": "stop",
}


def _round(chance: random.Random, *, has_proxy: bool) -> Round:
    (kind,) = chance.choices(ROUND_ENDS, weights=(10, 4, 2, 5, 1))
    match kind:
        case "kill-in-save":
            site = chance.choice(_SAVE_SITES)
            passes = chance.randint(2, 4)
            end = Fault(kind, _passer(chance, site), site, passes)
        case "kill-in-load":
            site = chance.choice(_LOAD_SITES)
            end, passes = Fault(kind, chance.randrange(WORLD_SIZE), site), 1
        case "kill-any":
            end = Fault(kind, chance.randrange(WORLD_SIZE), delay_seconds=_delay(chance))
            passes = 3
        case _:
            passes = chance.randint(1, 4)
            steps = 10 * passes + chance.randrange(10)
            end = Fault(kind, chance.randrange(WORLD_SIZE), "step.after", steps)
    return Round(_quiet(chance, passes, has_proxy=has_proxy), end)


def _last_round(chance: random.Random, *, has_proxy: bool) -> Round:
    (kind,) = chance.choices(SORTIE_ENDS, weights=(3, 3, 3))
    end = Fault(kind, chance.randrange(WORLD_SIZE), delay_seconds=_delay(chance))
    return Round(_quiet(chance, 3, has_proxy=has_proxy), end)


def _quiet(chance: random.Random, passes: int, *, has_proxy: bool) -> tuple[Fault, ...]:
    """In saves before the one in which the round ends; at most one each."""
    before = list(range(1, passes))
    saves = sorted(chance.sample(before, min(len(before), chance.randint(0, 2))))
    kinds = QUIET_STORE + QUIET_NETWORK if has_proxy else QUIET_STORE
    return tuple(_quiet_fault(chance, chance.choice(kinds), save) for save in saves)


def _quiet_fault(chance: random.Random, kind: str, save: int) -> Fault:
    if kind in QUIET_NETWORK:
        return Fault(kind, delay_seconds=_delay(chance))
    if kind == "slow-rank":
        site = chance.choice(("write.middle", "arrive.before"))
        seconds = round(chance.uniform(0.1, 0.8), 2)
        return Fault(kind, chance.randrange(WORLD_SIZE), site, save, seconds)
    site = chance.choice(("write.before", "write.middle", "publish.before"))
    return Fault(kind, _passer(chance, site), site, save)


def _passer(chance: random.Random, site: str) -> int:
    """A rank that passes the site."""
    return 0 if victim(site) == 0 else chance.randrange(WORLD_SIZE)


def _delay(chance: random.Random) -> float:
    return round(chance.uniform(0.2, 3.0), 2)
