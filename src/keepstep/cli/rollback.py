"""``keepstep rollback``: makes an older step the one that the next start goes on from."""

from keepstep.cli.output import Flag, UsageError, print_json
from keepstep.cli.records import find_entry, open_run
from keepstep.commit.layout import CheckpointId
from keepstep.commit.rollback import RolledBack, may_be_training, roll_back
from keepstep.commit.starting import announced_start
from keepstep.storage.base import Storage
from keepstep.storage.opening import open_storage


def rollback(uri: str, step: str, /, *, yes: Flag = False, json: Flag = False) -> None:
    """Make an older step the one that the next start goes on from.

    Nothing is removed: later checkpoints are superseded, and rolling back to one of them undoes it.
    A job that is training on the run stops at its next save, with exit code 87.

    Parameters
    ----------
    uri
        Where the run lives.
    step
        A step, or the full name of an attempt: committed, or superseded by an earlier rollback.
    yes
        Go ahead although a job may be training.
    json
        Print JSON.
    """
    storage = open_storage(uri)
    catalog = open_run(storage)
    with announced_start(storage) as start:
        head = find_entry(storage, catalog.entries(), step).id
        if head == catalog.latest():
            _print_nothing_done(storage, head, as_json=json)
            return
        training = may_be_training(storage)
        if training is not None and not yes:
            raise UsageError(
                f"generation {training} has not ended in good order: if its job is training, it "
                "would stop at its next save (exit code 87). Stop it, or go ahead with --yes"
            )
        outcome = roll_back(storage, head, start)
    if json:
        print_json(_document(storage, outcome))
    else:
        _print(outcome)


def _print_nothing_done(storage: Storage, head: CheckpointId, *, as_json: bool) -> None:
    if as_json:
        print_json({"uri": storage.uri, "head": head.name, "generation": None, "superseded": []})
    else:
        print(f"{head} is what the next start goes on from already")


def _print(outcome: RolledBack) -> None:
    print(f"generation {outcome.generation}: the next start goes on from {outcome.head}")
    if outcome.superseded:
        steps = ", ".join(str(checkpoint.step) for checkpoint in outcome.superseded)
        newest = outcome.superseded[-1].name
        print(f"superseded: steps {steps}; undo with `keepstep rollback URI {newest}`")


def _document(storage: Storage, outcome: RolledBack) -> dict[str, object]:
    return {
        "uri": storage.uri,
        "head": outcome.head.name,
        "generation": outcome.generation,
        "superseded": [checkpoint.name for checkpoint in outcome.superseded],
    }
