"""What torchrun tells its workers."""

from collections.abc import Mapping

from keepstep.errors import ConfigError
from keepstep.world import World

_REQUIRED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def is_launched(environ: Mapping[str, str]) -> bool:
    """Whether torchrun, or something that speaks like it, started this process.

    *Raises:* ConfigError naming what is missing if only part of its variables is there.
    """
    missing = [name for name in _REQUIRED if name not in environ]
    if missing and len(missing) < len(_REQUIRED):
        raise ConfigError(
            f"the environment sets {', '.join(n for n in _REQUIRED if n in environ)} "
            f"but not {', '.join(missing)}: start ranks with torchrun, which sets all of them, "
            "or unset them to run a single process"
        )
    return not missing


def world_from(environ: Mapping[str, str]) -> World:
    """This process's place among its peers; alone if no launcher started it.

    *Raises:* ConfigError naming the variable that is missing or wrong.
    """
    if not is_launched(environ):
        return World()
    world = World(
        rank=_number(environ, "RANK"),
        world_size=_number(environ, "WORLD_SIZE"),
        local_rank=_number(environ, "LOCAL_RANK"),
        local_world_size=_number(environ, "LOCAL_WORLD_SIZE"),
        node=_number(environ, "GROUP_RANK", "0"),
        num_nodes=_number(environ, "GROUP_WORLD_SIZE", "1"),
        restart_count=_number(environ, "TORCHELASTIC_RESTART_COUNT", "0"),
    )
    if world.rank >= world.world_size:
        raise ConfigError(f"RANK = {world.rank} but WORLD_SIZE = {world.world_size}")
    return world


def _number(environ: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environ[name] if default is None else environ.get(name, default)
    if not text.isdecimal():
        raise ConfigError(f"{name} = {text!r} in the environment: a whole number is needed")
    return int(text)
