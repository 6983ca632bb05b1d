"""``keepstep plan``: how often to save, from what a run has measured or from given numbers."""

from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from keepstep.cli.output import Flag, UsageError, print_json, print_table
from keepstep.cli.records import open_run
from keepstep.commit.ledgers import read_ledgers
from keepstep.observability.goodput import failure_rate, save_costs
from keepstep.observability.intervals import (
    Waste,
    availability_interval,
    expected_waste,
    optimal_interval,
    unannounced,
    young_interval,
)
from keepstep.observability.page.words import duration_in_words
from keepstep.observability.timeline import timeline
from keepstep.storage.opening import open_storage

_ROOM = 1.2
"""A save is not begun before the one before it has had so many times its usual time."""

Seconds = Annotated[float | None, Parameter(show_default=False)]
Uri = Annotated[str | None, Parameter(show_default=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Premises:
    """What a plan rests on. Seconds."""

    stall: float
    mttf: float
    recovery: float
    commit: float = 0.0
    notice_fraction: float = 0.0
    failures: int | None = None
    """How many were seen; ``None`` if the number was given."""


def plan(
    uri: Uri = None,
    /,
    *,
    stall: Seconds = None,
    mttf: Seconds = None,
    recovery: Seconds = None,
    commit: Seconds = None,
    notice_fraction: Seconds = None,
    json: Flag = False,
) -> None:
    """Work out how often to save.

    Parameters
    ----------
    uri
        A run to learn from; what is given below goes before what it tells.
    stall
        Seconds that a save holds training up.
    mttf
        Mean seconds from one failure to the next, announced ones included.
    recovery
        Seconds from a failure until training goes on.
    commit
        Seconds until a save is committed: saves are not planned closer together.
    notice_fraction
        Of the failures, those announced early enough to save, from 0 to 1.
    json
        Print JSON.
    """
    given = {
        "stall": stall,
        "mttf": mttf,
        "recovery": recovery,
        "commit": commit,
        "notice_fraction": notice_fraction,
    }
    known = {name: value for name, value in given.items() if value is not None}
    premises = _premises(uri, known)
    if json:
        print_json(_document(premises))
    else:
        _print(premises)


def best_interval(premises: Premises) -> float:
    """The availability-optimal interval, but no shorter than a save needs to be committed."""
    return max(_availability(premises), _ROOM * premises.commit)


def _availability(premises: Premises) -> float:
    # Announced failures cost a recovery too: there are so many more to each that is not.
    share = premises.notice_fraction
    return availability_interval(
        premises.stall, unannounced(premises.mttf, share), unannounced(premises.recovery, share)
    )


def wastes(premises: Premises) -> list[Waste]:
    """At half the best interval, at it, and at twice it."""
    best = best_interval(premises)
    return [
        expected_waste(
            factor * best,
            stall_seconds=premises.stall,
            failure_seconds=premises.mttf,
            recovery_seconds=premises.recovery,
            notice_fraction=premises.notice_fraction,
        )
        for factor in (0.5, 1.0, 2.0)
    ]


def _premises(uri: str | None, known: dict[str, float]) -> Premises:
    """*Raises:* ``UsageError`` naming what is missing or cannot be."""
    _check(known)
    measured = _measured(uri) if uri is not None else {}
    found = {**measured, **known}
    if "mttf" in known:
        found.pop("failures", None)
    missing = [name for name in ("stall", "mttf", "recovery") if name not in found]
    if missing:
        named = " and ".join(f"--{name}" for name in missing)
        why = "has no record of it" if uri is not None else "is given to learn it from"
        raise UsageError(f"{named} is missing: {'the run' if uri else 'no run'} {why}")
    return Premises(**found)  # type: ignore[arg-type]  # failures is whole


def _check(known: dict[str, float]) -> None:
    for name, value in known.items():
        option = f"--{name.replace('_', '-')} {value:g}"
        if value < 0 or (name in ("stall", "mttf") and value == 0):
            raise UsageError(f"{option}: it has to be more than nothing")
        if name == "notice_fraction" and value >= 1:
            raise UsageError(f"{option}: it has to be less than 1; 0.8 for four of five")


def _measured(uri: str) -> dict[str, float]:
    storage = open_storage(uri)
    open_run(storage)
    episodes = timeline(read_ledgers(storage))
    found: dict[str, float] = {}
    if (saves := save_costs(episodes)) is not None:
        found |= {"stall": max(saves.stall_seconds, 1e-6), "commit": saves.slowest_seconds}
    if (failures := failure_rate(episodes)) is not None:
        found |= {
            "mttf": failures.mean_seconds,
            "recovery": failures.recovery_seconds,
            "notice_fraction": min(failures.notice_fraction, 0.99),
            "failures": failures.count,
        }
    return found


def _document(premises: Premises) -> dict[str, object]:
    failure_seconds = unannounced(premises.mttf, premises.notice_fraction)
    return {
        "premises": {
            f"{name}_seconds" if name not in ("failures", "notice_fraction") else name: value
            for name, value in asdict(premises).items()
        },
        "young_seconds": young_interval(premises.stall, failure_seconds),
        "daly_seconds": optimal_interval(premises.stall, failure_seconds),
        "availability_seconds": _availability(premises),
        "best_seconds": best_interval(premises),
        "waste": [{**asdict(waste), "total": waste.total} for waste in wastes(premises)],
    }


def _print(premises: Premises) -> None:
    failure_seconds = unannounced(premises.mttf, premises.notice_fraction)
    seen = "" if premises.failures is None else f" ({premises.failures} seen)"
    announced = f", {premises.notice_fraction:.0%} announced" if premises.notice_fraction else ""
    stall = duration_in_words(premises.stall)
    after = f" and is committed after {duration_in_words(premises.commit)}"
    mttf, recovery = duration_in_words(premises.mttf), duration_in_words(premises.recovery)
    print(
        f"a save holds training up for {stall}{after if premises.commit else ''};\n"
        f"a failure every {mttf}{seen}{announced}; training goes on {recovery} later\n"
    )
    rows = [
        ("Young", duration_in_words(young_interval(premises.stall, failure_seconds))),
        ("Daly", duration_in_words(optimal_interval(premises.stall, failure_seconds))),
        ("availability", duration_in_words(_availability(premises))),
    ]
    if premises.commit:
        rows.append((f"{_ROOM:g} x commit", duration_in_words(_ROOM * premises.commit)))
    print_table([("formula", "interval"), *rows], right=(1,))
    print()
    table: list[tuple[str, ...]] = [("every", "saving", "done again", "recovery", "lost in all")]
    for waste in wastes(premises):
        parts = (waste.stall, waste.redo, waste.recovery, waste.total)
        table.append(
            (duration_in_words(waste.interval_seconds), *(f"{part:.2%}" for part in parts))
        )
    print_table(table, right=range(5))
    print(f'\nbest: every = "{max(1, round(best_interval(premises)))}s"')
