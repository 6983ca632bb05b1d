"""A user's own recipe in place of the small model: what of it drills take, and what fits it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from keepstep.config import Config, parse_interval, resolve
from keepstep.drills.scenario import REFERENCE_WORLD_SIZE, Drill, Scale
from keepstep.errors import ConfigError

_FEWEST_SAVES = 4
_SAVES = 8
"""Where the recipe does not count them."""

_OURS = {"uri", "resume", "accept_change", "train.steps", "checkpoint.every", "checkpoint.keep"}
"""What drills decide themselves."""

_OF_THE_TASK = ("task", "batch.", "model.", "data.")


@dataclass(frozen=True, slots=True)
class Trial:
    """A recipe as drills run it."""

    settings: Mapping[str, object]
    scale: Scale
    strategy: str
    """``auto`` where the drills decide."""
    is_exact: bool
    """Whether the bits are to be the same on any number of ranks."""
    num_slots: int
    """The greatest world size that its batch allows."""

    def objection(self, drill: Drill) -> str | None:
        """Why a drill makes no sense with this recipe."""
        own = [name for name, _ in drill.settings if name.startswith(_OF_THE_TASK)]
        if own:
            return f"it brings a task of its own ({own[0]})"
        if self.strategy not in ("auto", drill.strategy):
            return f"it trains by {drill.strategy}, and the recipe by {self.strategy}"
        worlds = {REFERENCE_WORLD_SIZE, *(n for act in drill.acts for n in act.world_sizes)}
        if max(worlds) > self.num_slots:
            return f"it takes {max(worlds)} ranks, and the recipe's batch feeds {self.num_slots}"
        if len(worlds) > 1 and not self.is_exact and "same_bits" in drill.judges:
            return "it compares bits of several world sizes, and the recipe has numerics = fast"
        return None


def read_recipe(path: Path, *, steps: int | None = None) -> Trial:
    """A recipe, as long as it says, or of ``steps`` steps with as many saves.

    *Raises:* ``ConfigError`` naming what cannot be rehearsed.
    """
    resolved = resolve(files=[path], environ={}, arguments=[])
    config = resolved.config
    _check(config, path)
    scale = _scale(config, path, steps)
    values = config.leaves()
    taken = {
        name: _word(values[name])
        for name, origin in resolved.origins.items()
        if origin != "default" and name not in _OURS
    }
    return Trial(
        settings={
            **taken,
            "data.path": str(Path(config.data.path).absolute()),
            "train.steps": scale.steps,
            "train.log_samples": "true",
            "train.log_state": "true",
            "checkpoint.every": scale.save_every,
        },
        scale=scale,
        strategy=config.parallel.strategy,
        is_exact=config.train.numerics != "fast",
        num_slots=config.batch.global_size // config.batch.microbatch,
    )


def _check(config: Config, path: Path) -> None:
    slots = config.batch.global_size // config.batch.microbatch
    if slots < 2:
        raise ConfigError(
            f"{path}: batch.global_size = {config.batch.global_size} is {slots} microbatch: drills "
            "take two ranks at least; choose a smaller batch.microbatch"
        )
    if config.train.early_stop_patience or config.train.spike_factor:
        raise ConfigError(
            f"{path}: train.early_stop_patience and train.spike_factor decide when a run ends or "
            "goes back: set them to 0 for drills, which compare runs of one length"
        )


def _scale(config: Config, path: Path, steps: int | None) -> Scale:
    every = parse_interval(config.checkpoint.every).steps
    if steps is None and every is None:
        raise ConfigError(
            f"{path}: checkpoint.every = {config.checkpoint.every!r} is no number of steps; give "
            f"--steps, of which a drill then saves every {_SAVES}th part"
        )
    if steps is None:
        scale = Scale(config.train.steps, every or 1)
    elif every is None:
        scale = Scale(steps, max(1, steps // _SAVES))
    else:
        scale = Scale(steps, max(1, round(every * steps / config.train.steps)))
    if scale.num_saves < _FEWEST_SAVES:
        raise ConfigError(
            f"{path}: {scale.steps} steps with a save every {scale.save_every} are "
            f"{scale.num_saves} saves; drills need {_FEWEST_SAVES}: choose a smaller "
            "checkpoint.every or more --steps"
        )
    return scale


def _word(value: object) -> object:
    """As the command line spells it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else value
