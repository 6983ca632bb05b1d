"""Stores that sync too little: what the judge has to find."""

from collections.abc import Callable
from typing import Any

from keepstep.testing.block_device import LIBC, opened
from keepstep.testing.power.calls import Call
from keepstep.testing.power.cut import Habit

_SYNCS = ("fsync", "fdatasync")
_NAMES = ("link", "rename", "replace")


def make_every_call() -> Habit:
    """What the product does."""
    return lambda call: call.make()


def never_sync_data() -> Habit:
    """Shards are not synced."""
    return _leaving_out(lambda call: _syncs_file(call) and not _is_temporary(call))


def never_sync_before_naming() -> Habit:
    """Small files get their final names unsynced."""
    return _leaving_out(lambda call: _syncs_file(call) and _is_temporary(call))


def name_before_sync() -> Habit:
    """Small files get their final names first, and are synced next."""
    named: list[Call] = []

    def make(call: Call) -> Any:
        if _syncs_file(call) and _is_temporary(call):
            return None
        if call.name in _NAMES:
            named.append(call)
        elif call.name in _SYNCS and call.is_directory and named:
            last = named.pop()
            with opened(last.root / last.path) as descriptor:
                LIBC.fsync(descriptor)
        return call.make()

    return make


def never_sync_directories() -> Habit:
    """New names are not synced."""
    return _leaving_out(lambda call: call.name in _SYNCS and call.is_directory)


def never_sync_removals() -> Habit:
    """A directory is not synced when names were removed from it."""
    has_removed = False

    def make(call: Call) -> Any:
        nonlocal has_removed
        if call.name in _SYNCS and call.is_directory and has_removed:
            return None
        has_removed = call.name in ("unlink", "rmdir")
        return call.make()

    return make


BROKEN: dict[str, Callable[[], Habit]] = {
    habit.__name__.replace("_", "-"): habit
    for habit in (
        never_sync_data,
        never_sync_before_naming,
        name_before_sync,
        never_sync_directories,
        never_sync_removals,
    )
}
"""By name."""


def _leaving_out(is_left_out: Callable[[Call], bool]) -> Habit:
    return lambda call: None if is_left_out(call) else call.make()


def _syncs_file(call: Call) -> bool:
    return call.name in _SYNCS and not call.is_directory


def _is_temporary(call: Call) -> bool:
    return call.path.name.startswith(".tmp-")
