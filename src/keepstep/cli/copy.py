"""``keepstep copy``: brings committed checkpoints to another store."""

from typing import Annotated

from cyclopts import Parameter

from keepstep.cli.output import Flag, UsageError, bytes_in_words, print_json
from keepstep.cli.progress import ProgressLine
from keepstep.cli.records import find_entry, open_run
from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.copying import Copied, check_fits, copy_checkpoint
from keepstep.commit.layout import CheckpointId
from keepstep.errors import NoCheckpointError
from keepstep.storage.base import Storage
from keepstep.storage.opening import open_storage

Step = Annotated[str | None, Parameter(show_default=False)]


def copy(
    src: str,
    dst: str,
    /,
    *,
    step: Step = None,
    all: Flag = False,
    single_writer: Flag = False,
    json: Flag = False,
) -> None:
    """Copy committed checkpoints to another store, where they are the same run.

    Every block is checked on the way; damage ends the command with 65 and commits nothing. A copy
    that was cut off goes on when the command is given again: what is there already is read back
    and compared instead of sent.

    Parameters
    ----------
    src
        Where the run lives.
    dst
        Where it is to live as well: an empty place, or an earlier copy of the same run.
    step
        A step, or the full name of an attempt; the newest committed one if left out.
    all
        Every committed checkpoint, the newest first.
    single_writer
        Vouch that nothing else writes at the destination, where it cannot create exclusively.
    json
        Print JSON.
    """
    if all and step is not None:
        raise UsageError(f"copy takes --step or --all, not both: leave out --step {step} or --all")
    source, destination = open_storage(src), open_storage(dst, single_writer=single_writer)
    chosen = _chosen(source, step, all=all)
    check_fits(source, destination, chosen)
    outcomes = []
    for checkpoint in chosen:
        outcome = _copy(source, destination, checkpoint)
        outcomes.append(outcome)
        if not json:
            print(_in_words(outcome), flush=True)
    if json:
        print_json(_document(source, destination, outcomes))


def _chosen(storage: Storage, step: str | None, *, all: bool) -> list[CheckpointId]:
    """Newest first."""
    catalog = open_run(storage)
    if step is not None:
        entry = find_entry(storage, catalog.entries(), step)
        if entry.status is not Status.COMMITTED:
            raise NoCheckpointError(
                f"{entry.id} is {entry.status}: only what counts as committed is copied"
            )
        return [entry.id]
    candidates = catalog.candidates()
    if not candidates:
        raise NoCheckpointError(f"{storage.uri} has no committed checkpoint")
    return candidates if all else candidates[:1]


def _copy(source: Storage, destination: Storage, checkpoint: CheckpointId) -> Copied:
    total_bytes = Catalog(source).manifest(checkpoint).total_bytes
    with ProgressLine(f"step {checkpoint.step}", total_bytes) as line:
        return copy_checkpoint(source, destination, checkpoint, line.add)


def _in_words(outcome: Copied) -> str:
    title = f"step {outcome.manifest.step}"
    if outcome.was_committed:
        return f"{title}: there already"
    objects, sent = len(outcome.manifest.objects), bytes_in_words(outcome.sent_bytes)
    kept = f", {bytes_in_words(outcome.kept_bytes)} there already" if outcome.kept_bytes else ""
    return f"{title}: copied ({objects} objects, {sent} sent{kept})"


def _document(source: Storage, destination: Storage, outcomes: list[Copied]) -> dict[str, object]:
    checkpoints = [
        {
            "name": outcome.manifest.id.name,
            "step": outcome.manifest.step,
            "was_committed": outcome.was_committed,
            "size_bytes": outcome.manifest.total_bytes,
            "sent_bytes": outcome.sent_bytes,
            "kept_bytes": outcome.kept_bytes,
        }
        for outcome in outcomes
    ]
    return {"source": source.uri, "destination": destination.uri, "checkpoints": checkpoints}
