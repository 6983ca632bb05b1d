"""The layers become one configuration, or one error that explains everything that is wrong."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from keepstep.config.schema import FIELDS, SECTIONS, Config, disagreements
from keepstep.config.sources import (
    Setting,
    read_command_line,
    read_environment,
    read_file,
)
from keepstep.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, and for every setting where its value was written."""

    config: Config
    origins: dict[str, str]
    """By dotted name: ``default``, ``file ...``, ``environment ...`` or ``command line ...``."""


def resolve(
    *, files: Sequence[Path], environ: Mapping[str, str], arguments: Sequence[str]
) -> Resolved:
    """Defaults, then ``files`` left to right, then ``environ``, then dotted ``arguments``.

    *Raises:* ``ConfigError`` with one line for each thing that is wrong, in any layer.
    """
    layers = [
        *(read_file(path) for path in files),
        read_environment(environ),
        read_command_line(arguments),
    ]
    problems = [problem for layer in layers for problem in layer.problems]
    values: dict[str, Any] = {}
    origins = dict.fromkeys(FIELDS, "default")
    refused = set()
    for setting in (setting for layer in layers for setting in layer.settings):
        try:
            values[setting.name] = _checked(setting)
            origins[setting.name] = setting.origin
        except ConfigError as error:
            problems.append(str(error))
            refused.add(setting.name)
    config = _assemble(values)
    problems += _conflicts(config, origins, refused)
    if problems:
        raise ConfigError("\n".join(problems))
    return Resolved(config, origins)


def _checked(setting: Setting) -> object:
    """The value of a setting, in its type."""
    if setting.name not in FIELDS:
        raise ConfigError(f"{_quoted(setting)}: {_why_unknown(setting)}")
    if setting.value is None:
        raise ConfigError(f"{_quoted(setting)}: a value must follow")
    field = FIELDS[setting.name]
    annotation: Any = Annotated[field.annotation, Field(), *field.metadata]
    adapter = TypeAdapter[object](annotation, config=ConfigDict(allow_inf_nan=False))
    value = setting.value
    if get_origin(field.annotation) is tuple:
        value = _items(value)
    try:
        # Text has no types of its own; TOML has, and 1 for true or "3" for 3 is a mistake there.
        return adapter.validate_python(value, strict=not setting.is_text)
    except ValidationError as error:
        reason = _expectation(error, adapter, setting)
        raise ConfigError(f"{_quoted(setting)}: {reason}") from None


def _assemble(values: Mapping[str, Any]) -> Config:
    """Checked values and defaults; the rules between settings are told apart, with their places."""
    sections: dict[str, Any] = {name: {} for name in SECTIONS}
    plain: dict[str, Any] = {}
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        (sections[section] if section else plain)[field] = value
    models = {name: getattr(Config(), name).model_copy(update=sections[name]) for name in SECTIONS}
    return Config.model_construct(**plain, **models)


def _conflicts(config: Config, origins: Mapping[str, str], refused: set[str]) -> list[str]:
    values = config.leaves()

    def quote(name: str) -> str:
        return f"{name} = {values[name]!r} ({origins[name]})"

    return [
        f"{quote(one.field)}: {one.told(quote(one.other))}"
        for one in disagreements(config)
        if refused.isdisjoint({one.field, one.other})
    ]


def _quoted(setting: Setting) -> str:
    value = "" if setting.value is None else f" = {setting.value!r}"
    return f"{setting.name}{value} ({setting.origin})"


def _why_unknown(setting: Setting) -> str:
    if setting.name in SECTIONS:
        names = [name for name in FIELDS if name.startswith(f"{setting.name}.")]
        return f"a section, not a setting; it has {_listed(setting, names)}"
    if isinstance(setting.value, dict) and (near := get_close_matches(setting.name, SECTIONS, n=1)):
        return f"no such section; did you mean [{near[0]}]?"
    if close := _closest(setting.name):
        return f"no such setting; did you mean {_listed(setting, close, 'or')}?"
    section = setting.name.partition(".")[0]
    names = [name for name in FIELDS if name.startswith(f"{section}.")]
    if names:
        return f"no such setting; section {section} has {_listed(setting, names)}"
    return "no such setting; see `keepstep config show`"


def _closest(name: str) -> list[str]:
    """Settings that may have been meant: of that last name in any section, or spelt like it."""
    last = name.rpartition(".")[2]
    if namesakes := [known for known in FIELDS if known.rpartition(".")[2] == last]:
        return namesakes
    if name in {known.replace(".", "_") for known in FIELDS}:
        return [known for known in FIELDS if known.replace(".", "_") == name]
    return get_close_matches(name, FIELDS, n=1, cutoff=0.75) or [
        known
        for known in FIELDS
        if get_close_matches(last, [known.rpartition(".")[2]], n=1, cutoff=0.8)
    ]


def _listed(setting: Setting, names: Iterable[str], word: str = "and") -> str:
    return _joined([setting.spelling.spell(name) for name in names], word)


def _joined(words: Sequence[str], word: str = "or") -> str:
    return f" {word} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _items(value: object) -> object:
    """A tuple out of a TOML array, ``"[0.9, 0.95]"`` or ``"0.9,0.95"``."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = tomllib.loads(f"items = {value}")["items"]
        except tomllib.TOMLDecodeError:
            return value
    elif isinstance(value, str):
        value = value.split(",")
    return tuple(value) if isinstance(value, list) else value


def _expectation(error: ValidationError, adapter: TypeAdapter[object], setting: Setting) -> str:
    """What the setting should have been, in words."""
    first, value = error.errors()[0], setting.value
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    schema = adapter.json_schema()
    expected = f"must be {_joined(_described(schema))}"
    if not isinstance(value, str):
        return expected
    if close := get_close_matches(value, [str(choice) for choice in _choices(schema)], n=1):
        return f"{expected}; did you mean {close[0]}?"
    if not setting.is_text and _fits_unquoted(adapter, value):
        return f"{expected}; write it without quotes"
    return expected


def _fits_unquoted(adapter: TypeAdapter[object], value: str) -> bool:
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def _choices(schema: Mapping[str, Any]) -> list[object]:
    found = list(schema.get("enum", []))
    return found + [choice for option in schema.get("anyOf", []) for choice in _choices(option)]


def _described(schema: Mapping[str, Any]) -> list[str]:
    """What a JSON schema allows, in words, one alternative each."""
    if "anyOf" in schema:
        return [words for option in schema["anyOf"] for words in _described(option)]
    if "enum" in schema:
        return [str(choice) for choice in schema["enum"]]
    if schema["type"] == "array":
        items = schema["prefixItems"]
        return [f"{len(items)} values, each {_joined(_described(items[0]))}, as in 0.9,0.95"]
    kind = {
        "boolean": "true or false",
        "integer": "a whole number",
        "number": "a number",
        "string": "text that is not empty" if schema.get("minLength") else "text",
    }[schema["type"]]
    limits = " and ".join(
        f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema
    )
    return [f"{kind} {limits}".rstrip()]


_BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
}
