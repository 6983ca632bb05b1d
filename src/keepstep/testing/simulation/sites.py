"""Where a process can be when it dies: who it is, in which phase, at which operation."""

from functools import lru_cache

Site = tuple[str, str, str, str, str]
"""Role, activity, operation, object, and the moment within the operation. Processes that are killed
at one site have done the same kinds of things before."""

_FOLDERS = {
    "run.": "run.json",
    "gene": "claim",
    "quar": "quarantine mark",
    "ledg": "ledger",
    "pins": "pin",
    "prun": "prune mark",
    "star": "start mark",
    "keep": "message",
}
_FILES = {"m": "manifest", ".": "metadata", "": "objects"}
_FILE_AT = 40
"""Where the file begins in ``steps/<step>-g<generation>-<attempt>/<file>``."""


@lru_cache(maxsize=4096)
def object_of(key: str) -> str:
    """What kind of thing a key names."""
    if key[:4] != "step":
        return _FOLDERS[key[:4]]
    letter = key[_FILE_AT : _FILE_AT + 1]
    if letter == "_":
        return "shard" if key[-1] == "p" else "index"
    return _FILES[letter]


def words(site: Site) -> str:
    """A site, for people."""
    return " ".join(filter(None, site))
