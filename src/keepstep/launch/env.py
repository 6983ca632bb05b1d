"""What torchrun, and keepstep's rendezvous in its agent, tell their workers."""

from collections.abc import Mapping
from pathlib import Path

from keepstep.errors import ConfigError, CoordinationError
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

    *Raises:* ConfigError naming the variable that is missing or wrong; CoordinationError if there
    are fewer nodes than the rendezvous was told to wait for.
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
    min_nodes = _number(environ, "KEEPSTEP_MIN_NODES", "1")
    if world.num_nodes < min_nodes:
        raise CoordinationError(
            f"the rendezvous formed a world of {world.num_nodes} node(s), fewer than the "
            f"{min_nodes} it was told to wait for: nothing is trained; restart"
        )
    return world


def round_from(environ: Mapping[str, str]) -> int | None:
    """Which round of the rendezvous started this process; None on a stock rendezvous.

    The same on all nodes, and higher with each restart.
    *Raises:* ConfigError if it is no number.
    """
    return _number(environ, "KEEPSTEP_ROUND") if "KEEPSTEP_ROUND" in environ else None


def tell_agent_of_commit(environ: Mapping[str, str]) -> None:
    """Let this node's agent know that a step was committed: newcomers are best admitted now.

    *Ranks:* local; one rank per node will do. Does nothing on a stock rendezvous.
    """
    mark = environ.get("KEEPSTEP_COMMIT_MARK")
    if mark:
        Path(mark).touch()


def _number(environ: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environ[name] if default is None else environ.get(name, default)
    if not text.isdecimal():
        raise ConfigError(f"{name} = {text!r} in the environment: a whole number is needed")
    return int(text)
