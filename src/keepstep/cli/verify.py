"""``keepstep verify``: reads checkpoints back and checks every byte."""

from datetime import UTC, datetime
from typing import TypedDict

from keepstep.cli.output import Flag, UsageError, bytes_in_words, print_json
from keepstep.cli.records import check_has_manifest, find_entry, open_run
from keepstep.commit.catalog import Catalog, Entry, Status
from keepstep.commit.part import WHOLE, Part, parse_part
from keepstep.commit.verify import verify_checkpoint
from keepstep.errors import ConfigError, ExitCode, NoCheckpointError
from keepstep.storage.base import Storage
from keepstep.storage.opening import open_storage


class DamageRecord(TypedDict):
    """One thing that is wrong."""

    key: str
    block: int | None
    reason: str


class Verdict(TypedDict):
    """What became of one checkpoint, under the names that ``--json`` prints."""

    name: str
    step: int
    status: str
    is_whole: bool
    objects: int | None
    size_bytes: int | None
    part: str
    """Of the tensors' bytes, such as ``3/7``; ``1/1`` is all."""
    damages: list[DamageRecord]


def verify(
    uri: str,
    step: str | None = None,
    /,
    *,
    all: Flag = False,
    data: str = "all",
    may_be_empty: Flag = False,
    json: Flag = False,
) -> int:
    """Read a checkpoint back and check every byte of it; exit 65 if any is damaged.

    Parameters
    ----------
    uri
        Where the run lives: a path or file:///path.
    step
        A step, or the full name of an attempt; the newest committed one if left out.
    all
        Every checkpoint that `ls` shows.
    data
        Which bytes of the tensors to read: all; 3/7 for the third of seven parts; rotate/7 for a
        part that changes every day (UTC). Manifests, indexes and sizes are always checked.
    may_be_empty
        Exit 0 if nothing has been committed yet, as before the first save of a run; else 66.
    json
        Print JSON.
    """
    if all and step is not None:
        raise UsageError(f"verify takes a step or --all, not both: leave out {step} or --all")
    part = _part(data)
    storage = open_storage(uri)
    catalog = Catalog(storage) if may_be_empty else open_run(storage)
    verdicts = []
    for entry in _chosen(storage, catalog, step, all=all, may_be_empty=may_be_empty):
        verdict = _verdict(storage, catalog, entry, part)
        verdicts.append(verdict)
        if not json:
            _print_verdict(verdict)
    if not verdicts and not json:
        print(f"{storage.uri}: nothing has been committed yet")
    if json:
        print_json({"uri": storage.uri, "checkpoints": verdicts})
    return _exit_code(verdicts)


def _chosen(
    storage: Storage, catalog: Catalog, step: str | None, *, all: bool, may_be_empty: bool
) -> list[Entry]:
    entries = catalog.entries()
    if step is not None:
        entry = find_entry(storage, entries, step)
        check_has_manifest(entry)
        return [entry]
    committed = [entry for entry in entries if entry.status is Status.COMMITTED]
    quarantined = [entry for entry in entries if entry.status is Status.QUARANTINED]
    if all and (committed or quarantined):
        return sorted(committed + quarantined, key=lambda entry: entry.id)
    if committed:
        return committed[-1:]
    if may_be_empty and not quarantined:
        return []
    aside = f" ({len(quarantined)} quarantined: see --all)" if quarantined else ""
    raise NoCheckpointError(f"{storage.uri} has no committed checkpoint{aside}")


def _part(text: str) -> Part:
    try:
        return parse_part(text, datetime.now(UTC).date())
    except ConfigError as error:
        raise UsageError(f"--data: {error.args[0]}") from error


def _verdict(storage: Storage, catalog: Catalog, entry: Entry, part: Part) -> Verdict:
    damages = verify_checkpoint(storage, entry.id, part)
    manifest = None if damages else catalog.manifest(entry.id)
    return Verdict(
        name=entry.id.name,
        step=entry.id.step,
        status=entry.status.value,
        is_whole=not damages,
        objects=len(manifest.objects) if manifest else None,
        size_bytes=manifest.total_bytes if manifest else None,
        part=str(part),
        damages=[
            DamageRecord(key=damage.key, block=damage.block, reason=damage.reason)
            for damage in damages
        ],
    )


def _exit_code(verdicts: list[Verdict]) -> ExitCode:
    are_whole = all(verdict["is_whole"] for verdict in verdicts)
    return ExitCode.OK if are_whole else ExitCode.DAMAGED


def _print_verdict(verdict: Verdict) -> None:
    aside = " (quarantined)" if verdict["status"] == Status.QUARANTINED else ""
    title = f"step {verdict['step']}{aside}"
    if verdict["objects"] is not None and verdict["size_bytes"] is not None:
        size = bytes_in_words(verdict["size_bytes"])
        part = "" if verdict["part"] == str(WHOLE) else f", part {verdict['part']} of the data"
        print(f"{title}: ok ({verdict['objects']} objects, {size}{part})", flush=True)
        return
    print(f"{title}: damaged", flush=True)
    for damage in verdict["damages"]:
        place = "" if damage["block"] is None else f" block {damage['block']}"
        print(f"  {damage['key']}{place}: {damage['reason']}", flush=True)
