"""Drills on a user's own recipe: what is taken from it, and what is refused."""

from pathlib import Path

import pytest

from keepstep.cli.main import main
from keepstep.config import resolve
from keepstep.drills.catalog import catalog, select
from keepstep.drills.recipe import read_recipe
from keepstep.errors import ConfigError, ExitCode

RECIPE = """
uri = "runs/mine"
[optim]
lr = 1e-3
betas = [0.8, 0.9]
[batch]
global_size = 8
microbatch = 2
[parallel]
strategy = "ddp"
[train]
steps = 800
[checkpoint]
every = 100
keep = "last=1"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def test_settings_are_taken_but_those_that_drills_decide(recipe: Path) -> None:
    trial = read_recipe(recipe)
    assert not {"uri", "checkpoint.keep"} & set(trial.settings)
    words = [word for name, value in trial.settings.items() for word in (f"--{name}", str(value))]
    config = resolve(files=[], environ={}, arguments=words).config
    assert (config.optim.lr, config.optim.betas) == (1e-3, (0.8, 0.9))
    assert (config.train.steps, config.checkpoint.every) == (800, "100")
    assert config.train.log_samples


def test_saves_are_spread_as_the_recipe_spreads_them(recipe: Path) -> None:
    scale = read_recipe(recipe, steps=40).scale
    assert (scale.steps, scale.save_every, scale.kill_step) == (40, 5, 20)


def test_a_drill_that_does_not_fit_is_skipped_with_its_reason(recipe: Path) -> None:
    trial = read_recipe(recipe)
    reasons = {drill.name: trial.objection(drill) for drill in catalog(trial.scale)}
    assert reasons["kill-write.middle-ddp"] is None
    assert "by fsdp" in (reasons["kill-write.middle-fsdp"] or "")
    assert "task of its own" in (reasons["rescale-epoch"] or "")
    assert "5 ranks" in (reasons["rescale-ddp"] or "")


def test_drills_on_more_nodes_than_the_batch_feeds_are_skipped(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("microbatch = 2", "microbatch = 4"))
    trial = read_recipe(recipe)
    reasons = {drill.name: trial.objection(drill) for drill in catalog(trial.scale)}
    assert "3 ranks" in (reasons["node-lost-for-good"] or "")
    assert "3 ranks" in (reasons["scale-1-3"] or "")
    assert reasons["two-jobs"] is reasons["two-jobs-at-once"] is reasons["node-lost"] is None


def test_bits_of_several_worlds_are_not_compared_in_fast_mode(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("steps = 800", 'steps = 800\nnumerics = "fast"'))
    trial = read_recipe(recipe)
    reasons = {drill.name: trial.objection(drill) for drill in catalog(trial.scale)}
    for name in ("node-lost-for-good", "crash-loop-node"):  # that one has a single rank throughout
        assert "numerics = fast" in (reasons[name] or "")
    assert reasons["node-lost"] is None


def test_a_drill_that_is_named_and_does_not_fit_is_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["drill", "run", "rescale-epoch", "--recipe", str(recipe)])
    assert code == ExitCode.CONFIG
    assert "rescale-epoch makes no sense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("every = 100", "every = 300"), "2 saves; drills need 4"),
        (("every = 100", 'every = "10min"'), "is no number of steps"),
        (("microbatch = 2", "microbatch = 8"), "two ranks at least"),
        (("steps = 800", "steps = 800\nspike_factor = 3.0"), "runs of one length"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(
    recipe: Path, change: tuple[str, str], message: str
) -> None:
    recipe.write_text(RECIPE.replace(*change))
    with pytest.raises(ConfigError, match=message):
        read_recipe(recipe)


def test_kills_move_with_the_scale(recipe: Path) -> None:
    (drill,) = select(("kill-write.middle-ddp",), read_recipe(recipe).scale)
    assert "@step:400" in drill.acts[0].failpoints


def test_steps_without_a_recipe_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drill", "run", "zombie", "--steps", "9"]) == ExitCode.USAGE
    assert "--recipe" in capsys.readouterr().err
