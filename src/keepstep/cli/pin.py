"""``keepstep pin`` and ``unpin``: what no prune removes, and what the policy may."""

from typing import Annotated

from cyclopts import Parameter

from keepstep.cli.output import Flag, print_json
from keepstep.cli.records import check_has_manifest, find_entry, open_run
from keepstep.commit.pins import Pin, read_pins
from keepstep.commit.pins import pin as put_pin
from keepstep.commit.pins import unpin as remove_pin
from keepstep.storage.opening import open_storage

Name = Annotated[str | None, Parameter(show_default=False)]


def pin(uri: str, step: str, /, *, name: Name = None, json: Flag = False) -> None:
    """Keep a checkpoint, whatever the policy says, until it is unpinned.

    Parameters
    ----------
    uri
        Where the run lives.
    step
        A step, or the full name of an attempt as `ls --all --json` prints it.
    name
        What to call it: shown by `ls` and `show`.
    json
        Print JSON.
    """
    storage = open_storage(uri)
    entry = find_entry(storage, open_run(storage).entries(), step)
    check_has_manifest(entry)
    is_new = put_pin(storage, entry.id, name)
    pinned = read_pins(storage).get(entry.id, Pin(entry.id, name))
    if json:
        print_json(
            {"uri": storage.uri, "name": entry.id.name, "pin": pinned.name, "is_new": is_new}
        )
    else:
        print(f"{entry.id}: {pinned}{'' if is_new else ' already'}")


def unpin(uri: str, step: str, /, *, json: Flag = False) -> None:
    """Leave a checkpoint to the policy again.

    Parameters
    ----------
    uri
        Where the run lives.
    step
        A step, or the full name of an attempt.
    json
        Print JSON.
    """
    storage = open_storage(uri)
    open_run(storage)
    found = [id for id in read_pins(storage) if step in (str(id.step), id.name)]
    for id in found:
        remove_pin(storage, id)
    if json:
        print_json({"uri": storage.uri, "unpinned": [id.name for id in found]})
    else:
        for id in found:
            print(f"{id}: no longer pinned")
        if not found:
            print(f"step {step} is not pinned")
