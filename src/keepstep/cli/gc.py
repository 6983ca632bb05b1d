"""``keepstep gc``: lets go of what is stored and paid for and can serve nobody any more."""

from datetime import UTC, datetime, timedelta

from keepstep.cli.output import (
    Flag,
    UsageError,
    age_in_words,
    print_json,
    print_table,
)
from keepstep.commit.lineage import list_generations
from keepstep.commit.uploads import forgotten_uploads, stale_uploads
from keepstep.config import parse_interval
from keepstep.errors import ConfigError
from keepstep.storage.base import KeepsUploads, Storage, Upload
from keepstep.storage.opening import open_storage


def gc(
    uri: str,
    /,
    *,
    uploads: Flag = False,
    older_than: str = "24h",
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Abort multipart uploads that were begun and can no longer be completed.

    Those of generations before the newest at once, for what they would commit does not count; all
    others of the run once they are old enough that whoever began them must be dead.

    Parameters
    ----------
    uri
        Where the run lives.
    uploads
        Collect unfinished uploads.
    older_than
        How old an upload must be that a living job could own: 90min, 24h.
    dry_run
        Only say what would be aborted.
    json
        Print JSON.
    """
    if not uploads:
        raise UsageError("gc wants to know what to collect: unfinished uploads with --uploads")
    age = _duration(older_than)
    storage = open_storage(uri)
    now = datetime.now(UTC)
    chosen = _chosen(storage, age, now)
    if not dry_run:
        _abort(storage, chosen)
    if json:
        print_json(_document(storage, chosen, is_dry=dry_run))
    else:
        _print(storage, chosen, now, is_dry=dry_run)


def _duration(text: str) -> timedelta:
    try:
        seconds = parse_interval(text).seconds
    except ConfigError:
        seconds = None
    if seconds is None:
        raise UsageError(f"--older-than {text!r} is not a time: write 30s, 90min or 24h")
    return timedelta(seconds=seconds)


def _chosen(storage: Storage, age: timedelta, now: datetime) -> list[Upload]:
    if not isinstance(storage, KeepsUploads):
        return []
    found = storage.uploads("")
    newest = max(list_generations(storage), default=0)
    chosen = stale_uploads(found, newest) + forgotten_uploads(found, older_than=age, now=now)
    return sorted(set(chosen), key=lambda upload: (upload.key, upload.began))


def _abort(storage: Storage, chosen: list[Upload]) -> None:
    if isinstance(storage, KeepsUploads):
        for upload in chosen:
            storage.abort_upload(upload)


def _print(storage: Storage, chosen: list[Upload], now: datetime, *, is_dry: bool) -> None:
    if not isinstance(storage, KeepsUploads):
        print(f"{storage.uri} keeps no unfinished uploads: there is nothing to collect")
        return
    if chosen:
        rows = [(age_in_words((now - u.began).total_seconds()), u.key, u.id) for u in chosen]
        print_table([("age", "object", "upload"), *rows], right={0})
    verb = "would be aborted" if is_dry else "aborted"
    print(f"{len(chosen)} unfinished upload{'' if len(chosen) == 1 else 's'} {verb}")


def _document(storage: Storage, chosen: list[Upload], *, is_dry: bool) -> dict[str, object]:
    uploads = [
        {"key": upload.key, "id": upload.id, "began": upload.began.isoformat()} for upload in chosen
    ]
    return {
        "uri": storage.uri,
        "keeps_uploads": isinstance(storage, KeepsUploads),
        "is_dry_run": is_dry,
        "uploads": uploads,
    }
