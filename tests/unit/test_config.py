"""Settings: layers, refusals, digest."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from keepstep.config import Config, Interval, Resolved, explain_change, parse_interval, resolve
from keepstep.config.schema import FIELDS
from keepstep.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "launch" / "recipes").glob("*.toml"))


def resolved(
    *arguments: str, files: Sequence[Path] = (), environ: Mapping[str, str] | None = None
) -> Resolved:
    return resolve(files=files, environ=environ or {}, arguments=arguments)


def refusal(
    *arguments: str, files: Sequence[Path] = (), environ: Mapping[str, str] | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(*arguments, files=files, environ=environ)
    return str(caught.value)


def recipe(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_without_any_source_everything_is_default() -> None:
    result = resolved()
    assert result.config == Config()
    assert set(result.origins) == set(FIELDS)
    assert set(result.origins.values()) == {"default"}


def test_each_layer_overrides_the_one_before_and_is_named_as_the_origin(tmp_path: Path) -> None:
    first = recipe(
        tmp_path, "seed = 1\n[train]\nsteps = 11\nlog_every = 12\nthreads = 2\n", "1.toml"
    )
    second = recipe(
        tmp_path, "[train]\nsteps = 21\nlog_every = 22\nevaluate_every = 23\n", "2.toml"
    )
    environ = {
        "KEEPSTEP_TRAIN__LOG_EVERY": "32",
        "KEEPSTEP_TRAIN__EVALUATE_EVERY": "33",
        "HOME": "/",
    }
    result = resolved("--train.evaluate-every", "43", files=[first, second], environ=environ)
    train = result.config.train
    assert (result.config.seed, train.threads, train.steps) == (1, 2, 21)
    assert (train.log_every, train.evaluate_every) == (32, 43)
    assert result.origins["train.precision"] == "default"
    assert result.origins["seed"] == f"file {first}"
    assert result.origins["train.steps"] == f"file {second}"
    assert result.origins["train.log_every"] == "environment KEEPSTEP_TRAIN__LOG_EVERY"
    assert result.origins["train.evaluate_every"] == "command line --train.evaluate-every"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--checkpoint.every", "7", "--accept-change"],
        ["--checkpoint.every=7", "--accept_change=true"],
        ["--accept-change", "--checkpoint.every=9", "--checkpoint.every", "7"],
        ["--accept-change", "yes", "--checkpoint.every", "7"],
    ],
)
def test_command_line_has_one_meaning_in_every_spelling(arguments: list[str]) -> None:
    config = resolved(*arguments).config
    assert config.checkpoint.every == "7"
    assert config.accept_change is True


def test_a_boolean_can_be_switched_off() -> None:
    assert resolved("--model.tied", "false").config.model.tied is False
    assert resolved("--model.tied=off", "--accept-change").config.model.tied is False


@pytest.mark.parametrize("text", ["0.8,0.9", "0.8, 0.9", "[0.8, 0.9]"])
def test_a_pair_is_read_from_text(text: str) -> None:
    assert resolved("--optim.betas", text).config.optim.betas == (0.8, 0.9)
    assert resolved(environ={"KEEPSTEP_OPTIM__BETAS": text}).config.optim.betas == (0.8, 0.9)


def test_a_pair_is_read_from_toml(tmp_path: Path) -> None:
    path = recipe(tmp_path, "optim.betas = [0.8, 0.9]\n")
    assert resolved(files=[path]).config.optim.betas == (0.8, 0.9)


def test_a_negative_number_is_a_value_and_not_a_flag() -> None:
    assert "optim.lr = '-1' (command line --optim.lr): must be a number > 0" in refusal(
        "--optim.lr", "-1"
    )


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("must", "must"), ("120", 120)])
def test_resume_is_a_word_or_a_step(text: str, value: str | int) -> None:
    assert resolved("--resume", text).config.resume == value


def test_a_step_of_one_type_has_one_digest(tmp_path: Path) -> None:
    from_toml = resolved(files=[recipe(tmp_path, "[checkpoint]\nevery = 7\n")]).config
    from_text = resolved("--checkpoint.every", "7").config
    assert from_toml.checkpoint.every == "7"
    assert from_toml.digest() == from_text.digest()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--checkpoint.evry", "5"],
            (
                "checkpoint.evry = '5' (command line --checkpoint.evry): no such setting; "
                "did you mean --checkpoint.every?"
            ),
        ),
        (
            ["--lr", "3"],
            "lr = '3' (command line --lr): no such setting; did you mean --optim.lr?",
        ),
        (
            ["--model.foo=1"],
            (
                "model.foo = '1' (command line --model.foo): no such setting; section model has "
                "--model.layers, --model.width, --model.heads, --model.tied and --model.dropout"
            ),
        ),
        (
            ["--zzz", "1"],
            "zzz = '1' (command line --zzz): no such setting; see `keepstep config show`",
        ),
        (
            ["--batch", "1"],
            (
                "batch = '1' (command line --batch): a section, not a setting; "
                "it has --batch.global_size and --batch.microbatch"
            ),
        ),
        (["--seed"], "seed (command line --seed): a value must follow"),
        (["--seed", "--accept-change"], "seed (command line --seed): a value must follow"),
        (
            ["recipe.toml"],
            "command line: 'recipe.toml' belongs to no setting: write --section.field value",
        ),
        (["--"], "command line: '--' belongs to no setting: write --section.field value"),
        (["--=3"], "command line: '--=3' belongs to no setting: write --section.field value"),
        (
            ["--train.precision", "fp61"],
            (
                "train.precision = 'fp61' (command line --train.precision): must be fp32, bf16 or "
                "fp16; did you mean fp16?"
            ),
        ),
        (
            ["--resume", "mst"],
            (
                "resume = 'mst' (command line --resume): must be auto, must, never or "
                "a whole number >= 0; did you mean must?"
            ),
        ),
        (
            ["--optim.betas", "0.9"],
            (
                "optim.betas = '0.9' (command line --optim.betas): must be 2 values, "
                "each a number >= 0 and < 1, as in 0.9,0.95"
            ),
        ),
        (
            ["--optim.lr", "nan"],
            "optim.lr = 'nan' (command line --optim.lr): must be a number > 0",
        ),
        (
            ["--model.tied", "--uri="],
            "uri = '' (command line --uri): must be text that is not empty",
        ),
        (
            ["--checkpoint.every", "soon"],
            (
                "checkpoint.every = 'soon' (command line --checkpoint.every): 'soon' is not an "
                "interval: write a number of steps (50 or 50steps) or a time (30s, 10min, 1h), "
                "greater than zero, or auto"
            ),
        ),
    ],
)
def test_a_wrong_argument_is_named_with_its_value_and_a_way_out(
    arguments: list[str], line: str
) -> None:
    assert refusal(*arguments) == line


@pytest.mark.parametrize(
    ("variable", "end"),
    [
        ("KEEPSTEP_CHECKPOINT_EVERY", "did you mean KEEPSTEP_CHECKPOINT__EVERY?"),
        ("KEEPSTEP_CHECKPOINT__EVRY", "did you mean KEEPSTEP_CHECKPOINT__EVERY?"),
        ("KEEPSTEP_SEAD", "did you mean KEEPSTEP_SEED?"),
    ],
)
def test_a_misspelt_variable_is_answered_in_its_own_spelling(variable: str, end: str) -> None:
    message = refusal(environ={variable: "5"})
    assert f"= '5' (environment {variable}): no such setting; " in message
    assert message.endswith(end)


def test_variables_that_are_not_settings_are_left_alone() -> None:
    environ = {"KEEPSTEP_FAILPOINTS": "write.middle=kill", "PATH": "x"}
    assert resolved(environ=environ).config == Config()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sed = 3", "sed = 3 (file {}): no such setting; did you mean seed?"),
        (
            'seed = "3"',
            "seed = '3' (file {}): must be a whole number >= 0; write it without quotes",
        ),
        ("seed = true", "seed = True (file {}): must be a whole number >= 0"),
        ("[optm]\nlr = 1", "optm = {{'lr': 1}} (file {}): no such section; did you mean [optim]?"),
        (
            "batch = 3",
            (
                "batch = 3 (file {}): a section, not a setting; "
                "it has batch.global_size and batch.microbatch"
            ),
        ),
        (
            "accept_change = 1",
            "accept_change = 1 (file {}): must be true or false",
        ),
        (
            "[train]\nsteps 3",
            (
                "file {}: not valid TOML: Expected '=' after a key in a key/value pair "
                "(at line 2, column 7): 'steps 3'"
            ),
        ),
    ],
)
def test_a_wrong_recipe_is_named_with_its_line_or_setting(
    tmp_path: Path, text: str, line: str
) -> None:
    path = recipe(tmp_path, text)
    assert refusal(files=[path]) == line.format(path)


def test_a_missing_recipe_suggests_its_neighbor(tmp_path: Path) -> None:
    recipe(tmp_path, "", "text.toml")
    message = refusal(files=[tmp_path / "txt.toml"])
    assert f"file {tmp_path / 'txt.toml'}: cannot be read: No such file" in message
    assert message.endswith(f"did you mean {tmp_path / 'text.toml'}?")


def test_a_recipe_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe")
    assert refusal(files=[path]).startswith(f"file {path}: not UTF-8 text")


def test_a_setting_that_a_later_layer_overrides_is_still_checked(tmp_path: Path) -> None:
    path = recipe(tmp_path, "seed = -1")
    assert "seed = -1" in refusal("--seed", "1", files=[path])


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = recipe(tmp_path, "sed = 1\n[train]\nsteps = 0\n")
    environ = {"KEEPSTEP_OPTIM__LR": "fast"}
    lines = refusal("--batch.microbatch", "7", files=[path], environ=environ).splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        "sed",
        "train.steps",
        "optim.lr",
        "batch.microbatch",
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--batch.microbatch", "7"],
            (
                "batch.microbatch = 7 (command line --batch.microbatch): must divide "
                "batch.global_size = 24 (default): for instance 6 or 8"
            ),
        ),
        (
            ["--batch.global_size", "2", "--batch.microbatch", "5"],
            (
                "batch.microbatch = 5 (command line --batch.microbatch): must divide "
                "batch.global_size = 2 (command line --batch.global_size): for instance 2"
            ),
        ),
        (
            ["--model.heads", "32"],
            (
                "model.width = 96 (default): must be a multiple of twice model.heads = 32 (command "
                "line --model.heads), since rotary embedding turns pairs in a head: "
                "for instance 64 or 128"
            ),
        ),
        (
            ["--optim.decay_steps", "20"],
            (
                "optim.decay_steps = 20 (command line --optim.decay_steps): must be greater than "
                "optim.warmup_steps = 20 (default): 21 or more"
            ),
        ),
        (
            ["--parallel.shard_size", "2"],
            (
                "parallel.shard_size = 2 (command line --parallel.shard_size): has no effect with "
                "parallel.strategy = 'auto' (default): set that to hsdp, or leave this out"
            ),
        ),
    ],
)
def test_settings_that_cannot_go_together_are_both_named(arguments: list[str], line: str) -> None:
    assert refusal(*arguments) == line


def test_a_refused_setting_causes_no_second_complaint() -> None:
    assert len(refusal("--model.heads", "many", "--model.width", "90").splitlines()) == 1


def test_a_config_built_in_code_is_checked_too() -> None:
    with pytest.raises(ValidationError, match=r"batch.microbatch must divide batch.global_size"):
        Config.model_validate({"batch": {"microbatch": 7}})
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 1


def test_what_is_resolved_equals_what_is_built_in_code() -> None:
    built = Config.model_validate({"seed": 3, "optim": {"lr": 0.01}})
    assert resolved("--seed", "3", "--optim.lr", "1e-2").config == built


def test_digest_sees_every_setting() -> None:
    other = {
        "str": "100",
        "bool": "true",
        "int": "48",
        "float": "0.25",
    }
    changes = {
        name: other.get(type(value).__name__, "0.5,0.5")
        for name, value in Config().leaves().items()
    } | {
        "resume": "must",
        "checkpoint.keep": "last=2",
        "task": "digits",
        "train.precision": "bf16",
        "train.numerics": "fast",
        "parallel.strategy": "ddp",
        "parallel.activation_checkpoint": "full",
        "model.tied": "false",
        "model.heads": "8",
        "batch.microbatch": "4",
        "parallel.shard_size": "1",
        "checkpoint.mode": "sync",
        "checkpoint.when_busy": "skip",
        "checkpoint.when_failing": "pause",
        "checkpoint.read_once": "always",
        "preemption.cloud": "aws",
        "watchdog.enabled": "false",
        "watchdog.factor": "7",
    }
    beside = {"parallel.shard_size": ["--parallel.strategy", "hsdp"]}
    digests = {
        name: resolved(f"--{name}", text, *beside.get(name, [])).config.digest()
        for name, text in changes.items()
    }
    assert set(digests) == set(FIELDS)
    assert len({Config().digest(), *digests.values()}) == len(FIELDS) + 1
    assert all(digest.startswith("sha256:") and len(digest) == 71 for digest in digests.values())


def test_mathematics_is_what_alters_the_result_and_nothing_else() -> None:
    assert sorted(Config().mathematics()) == [
        "batch.global_size",
        "batch.microbatch",
        "data.context",
        "model.dropout",
        "model.heads",
        "model.layers",
        "model.tied",
        "model.width",
        "optim.betas",
        "optim.clip_norm",
        "optim.decay_steps",
        "optim.lr",
        "optim.min_lr_ratio",
        "optim.warmup_steps",
        "optim.weight_decay",
        "seed",
        "task",
        "train.numerics",
        "train.precision",
    ]
    assert Config().mathematics()["optim.betas"] == [0.9, 0.95]


def test_a_change_is_explained_in_a_table() -> None:
    saved = Config().mathematics() | {"data.digest": "ab"}
    current = resolved("--seed", "7", "--optim.lr", "0.01").config.mathematics()
    assert explain_change(saved, current) == (
        "field        checkpoint  now\n"
        'data.digest  "ab"        (absent)\n'
        "optim.lr     0.003       0.01\n"
        "seed         0           7"
    )


def test_a_tuple_and_the_list_it_becomes_are_no_change() -> None:
    assert explain_change({"betas": [0.9, 0.95]}, {"betas": (0.9, 0.95)}) is None
    assert explain_change({}, {}) is None


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        (50, Interval(steps=50)),
        ("50", Interval(steps=50)),
        ("1step", Interval(steps=1)),
        ("50 steps", Interval(steps=50)),
        ("30s", Interval(seconds=30.0)),
        ("10min", Interval(seconds=600.0)),
        ("1.5h", Interval(seconds=5400.0)),
    ],
)
def test_an_interval_is_steps_or_time(text: str | int, interval: Interval) -> None:
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["", "0", 0, -3, "0s", "1.5", "1.5steps", "10m", "min", True])
def test_what_is_no_interval_is_refused(text: str | int) -> None:
    with pytest.raises(ConfigError, match="is not an interval: write a number of steps"):
        parse_interval(text)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_and_says_what_it_means(path: Path) -> None:
    result = resolved(files=[path])
    assert f"file {path}" in result.origins.values()
    assert result.config.optim.decay_steps == result.config.train.steps
    assert result.config.uri == f"runs/{'stdlib' if path.stem == 'text' else path.stem}"


def test_recipes_are_shipped() -> None:
    assert [path.stem for path in RECIPES] == ["digits", "text", "tiny"]


def test_importing_the_config_leaves_torch_and_the_environment_alone() -> None:
    code = "import sys, keepstep.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
