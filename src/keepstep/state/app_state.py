"""The tracked objects as one nested state dict."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from keepstep.errors import ConfigError, InternalError
from keepstep.state.equality import first_difference
from keepstep.state.module import NamedModule, refuse_meta
from keepstep.state.optimizer import (
    NamedOptimizer,
    check_keeps_its_state,
    names_for,
    owner_of,
)
from keepstep.state.rng import (
    check_current_device,
    derive_rng,
    load_rng_state_dict,
    rng_state_dict,
)
from keepstep.state.values import as_one_value, on_host

logger = logging.getLogger("keepstep.resume")

RANKS = "ranks"
"""Entries below this name belong to one rank each."""

_EXACT = ("keepstep", "torch")
"""Packages whose objects hold after loading just what was loaded."""

Path = tuple[str | int, ...]
TensorSpec = tuple[tuple[int, ...], torch.dtype]


@runtime_checkable
class Stateful(Protocol):
    """Anything that can be saved and put back. Its state must be the same on all ranks."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class AppState:
    """The ordered set of named objects that must come back, and the generators of this rank.

    *Ranks:* the same objects under the same names on all ranks.
    """

    def __init__(self, *, rank: int, seed: int) -> None:
        self._rank = rank
        self._seed = seed
        self._modules: dict[str, torch.nn.Module] = {}
        self._optimizers: dict[str, Optimizer] = {}
        self._others: dict[str, Stateful] = {}
        self._looked_up: tuple[dict[str, NamedModule], dict[str, NamedOptimizer]] | None = None

    def track(self, objects: Mapping[str, Any]) -> None:
        """Add objects. *Raises:* ``ConfigError`` naming one that cannot be tracked."""
        for name, tracked in objects.items():
            if name == RANKS or "." in name or self.tracks(name):
                raise ConfigError(
                    f"cannot track an object as {name!r}: the name is taken or not a plain one"
                )
            if isinstance(tracked, torch.nn.Module):
                _refuse_flat_parameters(name, tracked)
                self._modules[name] = tracked
            elif isinstance(tracked, Optimizer):
                check_keeps_its_state(name, tracked)
                self._optimizers[name] = tracked
            elif isinstance(tracked, Stateful):
                self._others[name] = tracked
            else:
                raise ConfigError(
                    f"cannot track {name!r}: a {type(tracked).__name__} has no state_dict() and "
                    "load_state_dict()"
                )

    def before_steps(self, act: Callable[[], None]) -> list[RemovableHandle]:
        """Have ``act`` called whenever an optimizer begins a step."""
        return [
            optimizer.register_step_pre_hook(lambda *_: act())
            for optimizer in self._optimizers.values()
        ]

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Within, names are looked up once: no parameter is replaced, and nothing trained."""
        modules = self._named_modules()
        self._looked_up = (modules, self._named_optimizers(modules))
        try:
            yield
        finally:
            self._looked_up = None

    def save_dict(self) -> dict[str, Any]:
        """Everything, nested by object. Tensors are the live ones.

        *Ranks:* all, at the same step boundary.
        """
        state: dict[str, Any] = self.common_dict()
        state[RANKS] = {rank_name(self._rank): {"rng": rng_state_dict()}}
        return state

    def common_dict(self) -> dict[str, Any]:
        """As :meth:`save_dict`, without what belongs to single ranks."""
        modules = self._named_modules()
        optimizers = self._named_optimizers(modules)
        state: dict[str, Any] = {name: module.state_dict() for name, module in modules.items()}
        state |= {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
        state |= {
            name: as_one_value(name, other.state_dict()) for name, other in self._others.items()
        }
        return state

    @torch.no_grad()  # parts of a DTensor are views then, and nothing that autograd knows of
    def template(
        self, contents: Mapping[Path, TensorSpec | None], *, with_rng: bool
    ) -> dict[str, Any]:
        """Where to load to: live tensors where there are any, new ones for optimizer state.

        Args:
            contents: What is to be loaded, by path: global shape and dtype, ``None`` for a value.
            with_rng: Whether to load this rank's generators.

        *Raises:* ``ConfigError`` naming what cannot be loaded into.
        """
        names = {path[0] for path in contents}
        template: dict[str, Any] = {}
        for name, module in self._named_modules().items():
            if name in names:
                keys = {str(path[1]) for path in contents if path[0] == name and len(path) == 2}
                template[name] = module.destinations(keys)
        destinations: dict[Path, Any] = {}
        own = (RANKS, rank_name(self._rank))
        for path, spec in contents.items():
            is_option = path[0] in self._optimizers and path[1] == "param_groups"
            is_value = spec is None and path[0] in self._optimizers
            is_own = with_rng and path[:2] == own
            if is_option or is_value or is_own or path[0] in self._others:
                destinations[path] = spec and torch.empty(spec[0], dtype=spec[1], device="cpu")
        for name, optimizer in self._named_optimizers().items():
            if name in names:
                template[name] = {"state": {}}
                mine = {path[1:]: s for path, s in contents.items() if s and path[0] == name}
                found = optimizer.destinations(mine)
                for inner, tensor in found.items():
                    refuse_meta((name, *inner), tensor)
                    destinations[(name, *inner)] = tensor
        for path in sorted(destinations, key=_path_order):
            _insert(template, path, destinations[path])
        return template

    def load_dict(self, loaded: Mapping[str, Any]) -> None:
        """Put back what was loaded into :meth:`template`, the generators excepted.

        Objects of which nothing was loaded stay as they are.
        """
        for name, module in self._named_modules().items():
            if loaded.get(name):
                module.finish_load(loaded[name])
        for name, optimizer in self._named_optimizers().items():
            if name in loaded:
                optimizer.load_state_dict(loaded[name])
        for name, other in self._others.items():
            if name in loaded:
                other.load_state_dict(loaded[name])

    def load_rng(self, loaded: Mapping[str, Any]) -> None:
        """Continue this rank's generators where they were saved.

        One that was not saved, as that of a device on a host without it, stays as it is.
        """
        saved = loaded[RANKS][rank_name(self._rank)]["rng"]
        load_rng_state_dict(saved)
        if absent := sorted(rng_state_dict().keys() - saved.keys()):
            logger.warning(
                "the checkpoint has no random generator of %s: it is derived from (seed, rank, "
                "step), and does not continue a stream",
                ", ".join(absent),
            )

    def check_restored(self, loaded: Mapping[str, Any], *, with_rng: bool) -> None:
        """Ask for what was loaded, tensors of modules and optimizers aside, and compare.

        Objects of other libraries that do not give back what they were given are only warned of:
        their state may mean the same all the same.

        *Ranks:* local. *Raises:* ``InternalError`` naming the first entry that was not restored.
        """
        for name, optimizer in self._named_optimizers().items():
            if name in loaded and (place := optimizer.first_lost_option(loaded[name])):
                raise _not_restored(f"{name}.{place}")
        for name, other in self._others.items():
            if name in loaded:
                place = first_difference(name, loaded[name], on_host(other.state_dict()))
                if place is not None and type(other).__module__.split(".")[0] in _EXACT:
                    raise _not_restored(place)
                if place is not None:
                    logger.warning(
                        "%s: after load_state_dict(), state_dict() says something else than what "
                        "was loaded; a %s may not go on exactly",
                        place,
                        type(other).__name__,
                    )
        if with_rng:
            name = rank_name(self._rank)
            saved, now = loaded[RANKS][name]["rng"], rng_state_dict()
            then = {key: saved.get(key, state) for key, state in now.items()}
            if place := first_difference(f"{RANKS}.{name}.rng", then, now):
                raise _not_restored(place)

    def derive_rng(self, step: int) -> None:
        """Start generators that depend on seed, rank and step alone."""
        derive_rng(seed=self._seed, rank=self._rank, step=step)

    def expected(self) -> dict[Path, TensorSpec | None]:
        """What a checkpoint must hold, by path; ``None`` for a value.

        Optimizers take what there is.
        """
        expected: dict[Path, TensorSpec | None] = {}
        for name, module in self._named_modules().items():
            for key, value in module.state_dict().items():
                is_tensor = isinstance(value, torch.Tensor)
                expected[(name, key)] = (tuple(value.shape), value.dtype) if is_tensor else None
        return expected | dict.fromkeys((name,) for name in self._others)

    def accepted(self, present: Mapping[Path, TensorSpec | None]) -> set[Path]:
        """Which entries of a checkpoint have a place here, those of :meth:`expected` aside."""
        optimizers = self._named_optimizers()
        return {
            path
            for path in present
            if path[0] == RANKS
            or path[0] in self._others
            or (path[0] in optimizers and optimizers[str(path[0])].accepts(path[1:]))
        }

    def check_device(self) -> None:
        """*Raises:* ``ConfigError`` if the generator that is saved is another device's than used.

        *Ranks:* local.
        """
        for name, module in self._modules.items():
            check_current_device(name, chain(module.parameters(), module.buffers()))

    @torch.no_grad()
    def check_in_place(self) -> None:
        """*Raises:* ``ConfigError`` naming an entry of a module that could not be put back.

        *Ranks:* local.
        """
        for module in self._named_modules().values():
            module.check_in_place()

    def tracks(self, name: str) -> bool:
        """Whether an object is tracked under a name."""
        return name in self._modules or name in self._optimizers or name in self._others

    def tracks_module(self, name: str) -> bool:
        """Whether a module is tracked under a name."""
        return name in self._modules

    def module_names(self) -> list[str]:
        """Of all tracked modules."""
        return list(self._modules)

    def optimizer_owners(self) -> dict[str, str]:
        """What to put before an optimizer's names of parameters, to have their full names."""
        by_module = {n: m.parameter_names() for n, m in self._named_modules().items()}
        return {name: owner_of(_held(o), by_module) for name, o in self._optimizers.items()}

    def buffer_names(self) -> set[str]:
        """Names of the buffers of all modules, as in the state dict."""
        return {
            f"{name}.{buffer}"
            for name, module in self._named_modules().items()
            for buffer in module.buffer_names()
        }

    def guarded(self) -> Callable[[str], bool]:
        """Tells by name which tensors of the state dict change in the optimizer step alone.

        Parameters of tracked optimizers do, and their state; a forward pass may change anything
        else, frozen parameters as well.
        """
        groups = [group for o in self._optimizers.values() for group in o.param_groups]
        held = {parameter for group in groups for parameter in group["params"]}
        parameters = {
            f"{name}.{parameter_name}"
            for name, module in self._named_modules().items()
            for parameter, parameter_name in module.parameter_names().items()
            if parameter in held
        }
        optimizers = tuple(f"{name}.state." for name in self._optimizers)
        return lambda fqn: fqn in parameters or fqn.startswith(optimizers)

    def optimizer_groups(self) -> dict[str, list[frozenset[str]]]:
        """Names of the parameters in each group of each optimizer."""
        return {name: optimizer.groups() for name, optimizer in self._named_optimizers().items()}

    def optimizer_options(self) -> dict[str, frozenset[str]]:
        """Names of the options of each optimizer's groups."""
        return {name: optimizer.options() for name, optimizer in self._named_optimizers().items()}

    def _named_modules(self) -> dict[str, NamedModule]:
        if self._looked_up is not None:
            return self._looked_up[0]
        return {name: NamedModule(name, module) for name, module in self._modules.items()}

    def _named_optimizers(
        self, modules: Mapping[str, NamedModule] | None = None
    ) -> dict[str, NamedOptimizer]:
        if self._looked_up is not None:
            return self._looked_up[1]
        by_module = {
            name: module.parameter_names()
            for name, module in (modules or self._named_modules()).items()
        }
        named = {}
        for name, optimizer in self._optimizers.items():
            held = _held(optimizer)
            names = names_for(held, by_module)
            strangers = sum(parameter not in names for parameter in held)
            if strangers:
                raise ConfigError(
                    f"optimizer {name!r} holds {strangers} parameters of modules that are not "
                    "tracked; track the module as well, and build the optimizer after wrapping it"
                )
            named[name] = NamedOptimizer(name, optimizer, names)
        return named


def _not_restored(place: str) -> InternalError:
    return InternalError(
        f"{place} was not restored: it is not what was saved, although every block was read "
        "correctly. This is a bug of keepstep, or of an object's load_state_dict()"
    )


def _held(optimizer: Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def rank_name(rank: int) -> str:
    """The name below which a rank's own entries are kept."""
    return f"{rank:05}"


def _refuse_flat_parameters(name: str, module: torch.nn.Module) -> None:
    if any(isinstance(part, FullyShardedDataParallel) for part in module.modules()):
        raise ConfigError(
            f"cannot track {name!r}: FullyShardedDataParallel is not supported; shard it with "
            "torch.distributed.fsdp.fully_shard"
        )


def _path_order(path: Path) -> tuple[tuple[bool, str | int], ...]:
    """List items in the order of their indices, so that each can be appended."""
    return tuple((isinstance(part, int), part) for part in path)


def _insert(container: Any, path: Path, value: Any) -> None:
    for part, following in pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(container, list):
            while len(container) <= int(part):
                container.append([] if isinstance(following, int) else {})
            container = container[int(part)]
        else:
            container = container.setdefault(part, empty)
    if isinstance(container, list):
        container.append(value)
    else:
        container[path[-1]] = value
