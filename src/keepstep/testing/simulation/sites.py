"""Where a process can be when it dies: operation, phase, and who it is."""

from typing import NamedTuple

_FOLDERS = {
    "run.": "run.json",
    "gene": "claim",
    "quar": "quarantine",
    "ledg": "ledger",
    "pins": "pin",
    "prun": "prune mark",
    "star": "start mark",
    "skip": "skip",
    "keep": "",  # a key of the process group's store
}
_FILES = {"m": "manifest", ".": "metadata", "": "steps"}
_FILE_AT = 40
"""Where the file begins in ``steps/<step>-g<generation>-<attempt>/<file>``."""


class Site(NamedTuple):
    """One place. Processes killed at it have done the same things before."""

    role: str
    activity: str
    operation: str
    object: str
    moment: str

    def __str__(self) -> str:
        return " ".join(filter(None, self))


def site_of(role: str, activity: str, operation: str, key: str, moment: str) -> Site:
    """The place of an operation on a key."""
    return Site(role, activity, operation, _object(key), moment)


def _object(key: str) -> str:
    if not key.startswith("step"):
        return _FOLDERS.get(key[:4], "everything")
    letter = key[_FILE_AT : _FILE_AT + 1]
    if letter == "_":
        return "shard" if key.endswith(".distcp") else "index"
    return _FILES[letter]
