"""``keepstep config show``: the settings as they resolve here."""

import os
from collections.abc import Iterator
from itertools import groupby
from json import dumps
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from keepstep.cli.output import Flag, print_json
from keepstep.config import Resolved, resolve

Files = Annotated[
    tuple[Path, ...], Parameter(name=["--config", "-c"], negative="", show_default=False)
]
Overrides = Annotated[str, Parameter(allow_leading_hyphen=True)]


def show(
    *overrides: Overrides, config: Files = (), origin: Flag = False, json: Flag = False
) -> None:
    """Print every setting as a recipe in TOML: defaults, files, environment, command line.

    Parameters
    ----------
    overrides
        Settings as a job takes them: --section.field value.
    config
        A recipe; may be repeated, and later ones override earlier ones.
    origin
        Say beside each value where it came from.
    json
        Print JSON.
    """
    resolved = resolve(files=config, environ=os.environ, arguments=overrides)
    if json:
        document: dict[str, object] = {
            "config": resolved.config.model_dump(mode="json"),
            "digest": resolved.config.digest(),
        }
        print_json(document | {"origins": resolved.origins} if origin else document)
    else:
        print("\n".join(_recipe(resolved, with_origin=origin)))


def _recipe(resolved: Resolved, *, with_origin: bool) -> Iterator[str]:
    """Lines of TOML, with the origins as comments."""
    settings = {
        name: f"{name.rpartition('.')[2]} = {dumps(value)}"  # JSON of scalars is TOML
        for name, value in resolved.config.leaves().items()
    }
    width = max(map(len, settings.values()))
    for section, names in groupby(settings, key=lambda name: name.rpartition(".")[0]):
        if section:
            yield f"\n[{section}]"
        for name in names:
            line = settings[name]
            yield f"{line:<{width}}  # {resolved.origins[name]}" if with_origin else line
