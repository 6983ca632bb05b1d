"""``keepstep prune``: removes checkpoints that a policy does not keep, and says why."""

from keepstep.cli.output import (
    NOTHING,
    Flag,
    UsageError,
    bytes_in_words,
    print_json,
    print_table,
)
from keepstep.cli.records import open_run
from keepstep.commit.pruning import Plan, Pruner
from keepstep.commit.retention import Decision, Extent
from keepstep.config import KeepPolicy, parse_keep
from keepstep.errors import ConfigError
from keepstep.storage.base import Storage
from keepstep.storage.opening import open_storage


def prune(
    uri: str,
    /,
    *,
    keep: str = "all",
    superseded: Flag = False,
    quarantined: Flag = False,
    may_be_empty: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Remove checkpoints that no rule keeps, and say of each why it stays or goes.

    Rules add up: what one of them keeps is kept. What the newest job resumed from, the newest
    verified checkpoint, anything newer, and what is pinned stays whatever they say. Attempts that
    jobs of the past never committed are removed. May be used while a job trains.

    Parameters
    ----------
    uri
        Where the run lives.
    keep
        What to keep: last=3,every=1h,every=1000steps,best=val_loss:min:2,tag=release, or all.
    superseded
        Also remove checkpoints that a newer generation went on from before of.
    quarantined
        Also remove checkpoints that were found damaged, with their marks.
    may_be_empty
        Exit 0 if there is no run yet, as before its first start; else 66.
    dry_run
        Only say what would be removed.
    json
        Print JSON.
    """
    policy, extent = _policy(keep), Extent(superseded, quarantined)
    storage = open_storage(uri)
    if not may_be_empty:
        open_run(storage)
    pruner = Pruner(storage)
    plan = pruner.plan(policy, extent) if dry_run else pruner.prune(policy, extent)
    if json:
        print_json(_document(storage, plan, policy, is_dry=dry_run))
    else:
        _print(plan, is_dry=dry_run)


def _policy(text: str) -> KeepPolicy:
    try:
        return parse_keep(text)
    except ConfigError as error:
        raise UsageError(f"--keep: {error.args[0]}") from error


def _print(plan: Plan, *, is_dry: bool) -> None:
    if plan.decisions:
        header = ("step", "generation", "bytes", "status", "decision", "reasons")
        print_table([header, *map(_row, plan.decisions)], right=range(3))
    count, verb = len(plan.removed), "would be removed" if is_dry else "removed"
    size = bytes_in_words(sum(decision.size_bytes or 0 for decision in plan.removed))
    kept = len(plan.decisions) - count
    print(f"{count} {verb} ({size} of checkpoints), {kept} kept")


def _row(decision: Decision) -> tuple[str, ...]:
    return (
        str(decision.id.step),
        str(decision.id.generation),
        NOTHING if decision.size_bytes is None else bytes_in_words(decision.size_bytes),
        decision.status.value,
        "keep" if decision.is_kept else "remove",
        "; ".join(decision.reasons),
    )


def _document(
    storage: Storage, plan: Plan, policy: KeepPolicy, *, is_dry: bool
) -> dict[str, object]:
    decisions = [
        {
            "name": decision.id.name,
            "step": decision.id.step,
            "generation": decision.id.generation,
            "status": decision.status.value,
            "size_bytes": decision.size_bytes,
            "is_kept": decision.is_kept,
            "reasons": list(decision.reasons),
        }
        for decision in plan.decisions
    ]
    return {
        "uri": storage.uri,
        "keep": str(policy),
        "is_dry_run": is_dry,
        "checkpoints": decisions,
    }
