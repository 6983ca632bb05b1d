"""Where settings are written: recipe files, the environment, the command line.

Each reader returns what it found, as it was written, together with the place where it stands.
Nothing is checked here but the form: whether a setting exists and fits is for ``resolve``.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from pathlib import Path

from keepstep.config.schema import FIELDS, SECTIONS

ENVIRONMENT_PREFIX = "KEEPSTEP_"
RESERVED = frozenset(
    {
        "KEEPSTEP_FAILPOINTS",
        "KEEPSTEP_FAILPOINTS_LOG",
        # By which the rendezvous in torchrun's agent speaks to workers.
        "KEEPSTEP_ROUND",
        "KEEPSTEP_MIN_NODES",
        "KEEPSTEP_MAX_NODES",
        "KEEPSTEP_COMMIT_MARK",
        "KEEPSTEP_AGENT_PID",
        "KEEPSTEP_HEARTBEATS",
        "KEEPSTEP_CAUSE",
        "KEEPSTEP_RENDEZVOUS",
        "KEEPSTEP_STEP_OVER",
        # Of `keepstep run`.
        "KEEPSTEP_METRICS_PORT",
        "KEEPSTEP_NUMBERS",
    }
)
"""Variables of keepstep that are not settings."""

_TRUTH = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0"})


class Spelling(Enum):
    """How a source spells the name of a setting."""

    FILE = "{}"
    ENVIRONMENT = ENVIRONMENT_PREFIX + "{}"
    COMMAND_LINE = "--{}"

    def spell(self, name: str) -> str:
        """The dotted ``name`` as this source would write it."""
        if self is Spelling.ENVIRONMENT:
            name = name.replace(".", "__").upper()
        return self.value.format(name)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value found in one place."""

    name: str
    """Dotted."""
    value: object
    """``None`` for a flag that nothing follows."""
    origin: str
    """The place, as a person would look for it."""
    spelling: Spelling

    @property
    def is_text(self) -> bool:
        """Whether the value is only written down, its type being the setting's to know."""
        return self.spelling is not Spelling.FILE


@dataclass(slots=True)
class Layer:
    """All that one source says, and what could not be read of it."""

    settings: list[Setting] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_file(path: Path) -> Layer:
    """The settings of a TOML recipe."""
    origin = f"file {path}"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"{origin}: cannot be read: {error.strerror or error}{_similar_files(path)}"
        return Layer(problems=[reason])
    except UnicodeDecodeError as error:
        return Layer(problems=[f"{origin}: not UTF-8 text: {error.reason} at byte {error.start}"])
    except tomllib.TOMLDecodeError as error:
        return Layer(problems=[f"{origin}: not valid TOML: {error}{_offending_line(path, error)}"])
    found = _leaves(values)
    return Layer([Setting(name, value, origin, Spelling.FILE) for name, value in found])


def read_environment(environ: Mapping[str, str]) -> Layer:
    """The settings among the variables of a process: ``KEEPSTEP_SECTION__FIELD``."""
    return Layer(
        [
            Setting(
                variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."),
                value,
                f"environment {variable}",
                Spelling.ENVIRONMENT,
            )
            for variable, value in sorted(environ.items())
            if variable.startswith(ENVIRONMENT_PREFIX) and variable not in RESERVED
        ]
    )


def read_command_line(arguments: Sequence[str]) -> Layer:
    """The settings among ``--section.field value``, ``--section.field=value`` and bare booleans."""
    layer = Layer()
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not re.match(r"--\w", word):
            layer.problems.append(
                f"command line: {word!r} belongs to no setting: write --section.field value"
            )
            continue
        value: str | None
        flag, assigned, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not assigned:
            if _takes_next(name, words):
                value = words.pop(0)
            elif _is_boolean(name):
                value = "true"
            else:
                value = None
        layer.settings.append(Setting(name, value, f"command line {flag}", Spelling.COMMAND_LINE))
    return layer


def _leaves(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, dict) and name in SECTIONS:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _is_boolean(name: str) -> bool:
    return name in FIELDS and FIELDS[name].annotation is bool


def _takes_next(name: str, words: Sequence[str]) -> bool:
    if not words or words[0].startswith("--"):
        return False
    return not _is_boolean(name) or words[0].lower() in _TRUTH


def _offending_line(path: Path, error: tomllib.TOMLDecodeError) -> str:
    number = re.search(r"line (\d+)", str(error))
    lines = path.read_text(encoding="utf-8").splitlines()
    if number is None or not 0 < int(number[1]) <= len(lines):
        return ""
    return f": {lines[int(number[1]) - 1].strip()!r}"


def _similar_files(path: Path) -> str:
    near = sorted(other.name for other in path.parent.glob("*.toml") if other.is_file())
    close = get_close_matches(path.name, near, n=1) or get_close_matches(f"{path}.toml", near, n=1)
    return f"; did you mean {path.with_name(close[0])}?" if close else ""
