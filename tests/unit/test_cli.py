"""The command line on real run directories, written through the commit modules."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from run_on_disk import OBJECTS_PER_RANK, RunOnDisk

from keepstep import errors
from keepstep.cli.main import main
from keepstep.cli.output import age_in_words, bytes_in_words, pairs_in_words
from keepstep.commit import canonical
from keepstep.commit.catalog import Catalog
from keepstep.config import Config
from keepstep.errors import ExitCode
from keepstep.storage.local import LocalStorage

Keepstep = Callable[..., tuple[int, str, str]]


def columns(text: str) -> list[list[str]]:
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines()]


def test_ls_prints_one_aligned_line_per_checkpoint_newest_last(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    code, out, err = keepstep("ls", run.uri)
    assert (code, err) == (0, "")
    size = bytes_in_words(run.catalog.manifest(run.catalog.candidates()[0]).total_bytes)
    assert columns(out) == [
        ["step", "age", "bytes", "world", "generation", "metrics", "status"],
        ["10", "4h", size, "2", "1", "loss=4.9", "committed"],
        ["20", "3h", size, "2", "1", "loss=4.8", "committed"],
        ["30", "2h", size, "2", "1", "loss=4.7", "committed"],
    ]
    starts = {line.index("committed") for line in out.splitlines()[1:]}
    assert len(starts) == 1
    assert out.isascii()


def test_ls_hides_superseded_and_unfinished_attempts_until_asked(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    first, second, third = reversed(run.catalog.candidates())
    run.catalog.quarantine(second, "block 3 is damaged")
    run.start(resumed_from=first)
    run.leave_unfinished(20)
    newest = run.save(30, world_size=1)

    _, out, _ = keepstep("ls", run.uri)
    assert [(row[0], row[4], row[-1]) for row in columns(out)[1:]] == [
        ("10", "1", "committed"),
        ("20", "1", "quarantined: block 3 is damaged"),
        ("30", "2", "committed"),
    ]
    _, out, _ = keepstep("ls", run.uri, "--all")
    rows = columns(out)
    assert rows[0][-3:] == ["attempt", "metrics", "status"]
    assert [(row[0], row[4], row[-1]) for row in rows[1:]] == [
        ("10", "1", "committed"),
        ("20", "1", "quarantined: block 3 is damaged"),
        ("20", "2", "uncommitted"),
        ("30", "1", "superseded"),
        ("30", "2", "committed"),
    ]
    assert third.attempt in out
    assert newest.attempt in out


def test_ls_json_has_stable_names(run: RunOnDisk, keepstep: Keepstep) -> None:
    unfinished = run.leave_unfinished(40)
    _, out, _ = keepstep("ls", run.uri, "--all", "--json")
    document = json.loads(out)
    assert document["uri"] == run.uri
    newest = run.catalog.candidates()[0]
    committed, last = document["checkpoints"][-2:]
    assert committed.pop("age_seconds") == pytest.approx(7200, abs=60)
    assert datetime.fromisoformat(committed.pop("created")).tzinfo is not None
    assert committed == {
        "name": newest.name,
        "step": 30,
        "generation": 1,
        "attempt": newest.attempt,
        "status": "committed",
        "note": None,
        "size_bytes": run.catalog.manifest(newest).total_bytes,
        "objects": 1 + 2 * OBJECTS_PER_RANK,
        "world_size": 2,
        "metrics": {"loss": 4.7},
        "tags": ["final"],
        "pin": None,
    }
    assert last == dict.fromkeys(last) | {
        "name": unfinished.name,
        "step": 40,
        "generation": 1,
        "attempt": unfinished.attempt,
        "status": "uncommitted",
    }


def test_ls_shows_a_checkpoint_whose_manifest_is_damaged(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    run.flip_byte(run.catalog.candidates()[0], "manifest.json", 40)
    code, out, _ = keepstep("ls", run.uri)
    assert code == 0
    last = columns(out)[-1]
    assert last[:3] == ["30", "-", "-"]
    assert last[-1].startswith("committed: steps/")
    assert "manifest.json" in last[-1]


def test_ls_shows_a_checkpoint_of_a_newer_format(
    run: RunOnDisk, keepstep: Keepstep, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = run.catalog.candidates()[0]
    manifest = run.catalog.manifest(newest)
    with monkeypatch.context() as future:
        future.setattr(canonical, "FORMAT_VERSION", 99)
        run.path(newest, "manifest.json").write_bytes(manifest.to_bytes())
    code, out, _ = keepstep("ls", run.uri)
    assert code == 0
    assert "has format 99" in out.splitlines()[-1]
    assert keepstep("verify", run.uri)[0] == ExitCode.CONFIG


def test_ls_of_a_run_without_checkpoints_says_so_and_succeeds(
    tmp_path: Path, keepstep: Keepstep
) -> None:
    run = RunOnDisk(tmp_path)
    run.start()
    assert keepstep("ls", run.uri) == (0, "", f"no checkpoints in {run.uri} yet\n")
    run.leave_unfinished(10)
    assert keepstep("ls", run.uri)[2].endswith("yet (1 with --all)\n")
    assert json.loads(keepstep("ls", run.uri, "--json")[1])["checkpoints"] == []


@pytest.mark.parametrize("verb", ["ls", "verify"])
def test_where_there_is_no_run_the_answer_is_66(
    tmp_path: Path, keepstep: Keepstep, verb: str
) -> None:
    code, out, err = keepstep(verb, str(tmp_path / "nowhere"))
    assert (code, out) == (ExitCode.NO_CHECKPOINT, "")
    assert err == f"keepstep: error: {tmp_path / 'nowhere'} holds no keepstep run (no run.json)\n"


def test_an_error_is_json_when_json_is_asked_for(tmp_path: Path, keepstep: Keepstep) -> None:
    code, out, err = keepstep("ls", str(tmp_path), "--json")
    assert (code, out) == (ExitCode.NO_CHECKPOINT, "")
    message = f"{tmp_path} holds no keepstep run (no run.json)"
    expected = {"kind": "NoCheckpointError", "message": message, "exit_code": 66}
    assert json.loads(err) == {"error": expected}


def test_an_unknown_scheme_is_a_configuration_error(keepstep: Keepstep) -> None:
    code, _, err = keepstep("ls", "gopher://x")
    assert code == ExitCode.CONFIG
    assert "gopher" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lss"], 'Unknown command "lss". Did you mean "ls"?'),
        (["ls"], 'Command "ls" parameter URI requires an argument.'),
        (["ls", "x", "--jsn"], "Unknown option: --jsn. Did you mean --json?"),
        (["ls", "x", "y"], "Unused Tokens: ['y']."),
        (["verify", "x", "3", "--all"], "verify takes a step or --all, not both"),
    ],
)
def test_wrong_usage_is_one_line_with_a_suggestion_and_64(
    keepstep: Keepstep, words: list[str], message: str
) -> None:
    code, out, err = keepstep(*words)
    assert (code, out) == (ExitCode.USAGE, "")
    assert err.startswith(f"keepstep: error: {message}")
    assert err.count("\n") == 1


def test_show_lays_out_the_manifest_and_the_tensors_of_all_ranks(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    newest, previous, _ = run.catalog.candidates()
    code, out, err = keepstep("show", run.uri, "30")
    assert (code, err) == (0, "")
    rows = columns(out)
    assert ["checkpoint", str(newest)] in rows
    assert ["parent", str(previous)] in rows
    assert ["progress", "samples=720 tokens=46080"] in rows
    assert ["metrics", "loss=4.7"] in rows
    assert ["world", "2"] in rows
    assert ["versions", "keepstep=0.1.0 torch=2.13.0"] in rows
    assert ["optim.lr", "0.003"] in rows
    assert ["192 B", "float32", "4 x 12", "model.embed.weight"] in rows
    assert ["rng.0"] in rows
    assert ["rng.1"] in rows
    assert any(row[:2] == ["160 B", "__1_0.distcp"] for row in rows)


def test_show_json_holds_the_manifest_as_it_is_stored(run: RunOnDisk, keepstep: Keepstep) -> None:
    newest = run.catalog.candidates()[0]
    document = json.loads(keepstep("show", run.uri, newest.name, "--json")[1])
    assert document["manifest"] == json.loads(run.path(newest, "manifest.json").read_bytes())
    assert (document["name"], document["status"]) == (newest.name, "committed")
    assert document["tensors"] == [
        {
            "fqn": "model.embed.weight",
            "dtype": "float32",
            "shape": [4, 12],
            "chunks": 2,
            "size_bytes": 192,
        }
    ]
    assert document["values"] == ["rng.0", "rng.1"]


def test_show_prefers_the_committed_one_of_several_attempts(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    run.start(resumed_from=run.catalog.candidates()[-1])
    second = run.save(30)
    _, out, _ = keepstep("show", run.uri, "30")
    assert ["checkpoint", str(second)] in columns(out)
    superseded = next(e.id for e in run.catalog.entries() if e.status == "superseded")
    _, out, _ = keepstep("show", run.uri, superseded.name)
    assert ["status", "superseded"] in columns(out)


def test_show_of_a_step_that_is_not_there_names_those_that_are(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    run.leave_unfinished(40)
    code, _, err = keepstep("show", run.uri, "25")
    assert code == ExitCode.NO_CHECKPOINT
    assert err.endswith("has no checkpoint 25; there are 10, 20, 30\n")
    code, _, err = keepstep("show", run.uri, "40")
    assert code == ExitCode.NO_CHECKPOINT
    assert "was never committed" in err


def test_show_still_tells_what_the_manifest_says_when_an_index_is_missing(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    newest = run.catalog.candidates()[0]
    run.path(newest, "__1.index.json").unlink()
    code, out, err = keepstep("show", run.uri, "30")
    assert code == ExitCode.DAMAGED
    assert ["metrics", "loss=4.7"] in columns(out)
    assert "__1.index.json is missing" in err


def test_verify_reads_the_newest_unless_told_otherwise(run: RunOnDisk, keepstep: Keepstep) -> None:
    size = bytes_in_words(run.catalog.manifest(run.catalog.candidates()[0]).total_bytes)
    assert keepstep("verify", run.uri) == (0, f"step 30: ok (5 objects, {size})\n", "")
    assert keepstep("verify", run.uri, "10")[1].startswith("step 10: ok")
    out = keepstep("verify", run.uri, "--all")[1]
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        "step 10",
        "step 20",
        "step 30",
    ]


def test_verify_names_object_and_block_of_every_damage(run: RunOnDisk, keepstep: Keepstep) -> None:
    _, middle, _ = run.catalog.candidates()
    run.flip_byte(middle, "__0_0.distcp", 70)
    run.path(middle, "__1_0.distcp").unlink()
    code, out, err = keepstep("verify", run.uri, "20")
    assert (code, err) == (ExitCode.DAMAGED, "")
    assert out.splitlines() == [
        "step 20: damaged",
        f"  {middle.key('__0_0.distcp')} block 1: checksum mismatch",
        f"  {middle.key('__1_0.distcp')}: is missing",
    ]
    code, out, _ = keepstep("verify", run.uri, "--all", "--json")
    assert code == ExitCode.DAMAGED
    verdicts = json.loads(out)["checkpoints"]
    assert [(v["step"], v["is_whole"]) for v in verdicts] == [(10, True), (20, False), (30, True)]
    assert verdicts[1]["damages"] == [
        {"key": middle.key("__0_0.distcp"), "block": 1, "reason": "checksum mismatch"},
        {"key": middle.key("__1_0.distcp"), "block": None, "reason": "is missing"},
    ]
    assert keepstep("verify", run.uri)[0] == 0


def test_verify_passes_over_quarantined_ones_unless_all_are_asked_for(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    newest = run.catalog.candidates()[0]
    run.flip_byte(newest, "__0_0.distcp", 0)
    run.catalog.quarantine(newest, "block 0")
    assert keepstep("verify", run.uri)[:2][1].startswith("step 20: ok")
    code, out, _ = keepstep("verify", run.uri, "--all")
    assert code == ExitCode.DAMAGED
    assert "step 30 (quarantined): damaged" in out


def test_verify_without_anything_committed_is_66(tmp_path: Path, keepstep: Keepstep) -> None:
    run = RunOnDisk(tmp_path)
    run.start()
    run.leave_unfinished(10)
    for words in ([], ["--all"], ["10"]):
        assert keepstep("verify", run.uri, *words)[0] == ExitCode.NO_CHECKPOINT


def test_verify_of_a_run_that_may_be_empty_is_0(tmp_path: Path, keepstep: Keepstep) -> None:
    code, out, _ = keepstep("verify", str(tmp_path), "--all", "--may-be-empty")
    assert code == ExitCode.OK
    assert "nothing has been committed yet" in out


def test_config_show_prints_a_recipe_that_resolves_to_itself(
    tmp_path: Path, keepstep: Keepstep
) -> None:
    words = [
        "--seed",
        "3",
        "--optim.betas",
        "0.8,0.9",
        "--uri",
        'a "quoted" name',
        "--accept-change",
    ]
    code, out, err = keepstep("config", "show", *words)
    assert (code, err) == (0, "")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(out, encoding="utf-8")
    assert keepstep("config", "show", "-c", str(recipe))[1] == out
    assert 'uri = "a \\"quoted\\" name"' in out


def test_config_show_names_the_origin_of_every_value(
    tmp_path: Path, keepstep: Keepstep, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "1.toml", tmp_path / "2.toml"
    first.write_text("seed = 1\ntrain.steps = 7\n", encoding="utf-8")
    second.write_text("seed = 2\n", encoding="utf-8")
    monkeypatch.setenv("KEEPSTEP_TRAIN__THREADS", "2")
    words = ["-c", str(first), "--config", str(second), "--origin", "--batch.microbatch=4"]
    out = keepstep("config", "show", *words)[1]
    origins = dict(re.split(r" +# ", line) for line in out.splitlines() if "#" in line)
    assert origins["seed = 2"] == f"file {second}"
    assert origins["steps = 7"] == f"file {first}"
    assert origins["threads = 2"] == "environment KEEPSTEP_TRAIN__THREADS"
    assert origins["microbatch = 4"] == "command line --batch.microbatch"
    assert origins["layers = 3"] == "default"


def test_config_show_json_has_config_digest_and_origins(keepstep: Keepstep) -> None:
    document = json.loads(keepstep("config", "show", "--seed", "3", "--origin", "--json")[1])
    assert Config.model_validate(document["config"]).digest() == document["digest"]
    assert document["origins"]["seed"] == "command line --seed"
    assert "origins" not in json.loads(keepstep("config", "show", "--json")[1])


def test_config_show_puts_every_mistake_on_its_own_line_and_exits_78(keepstep: Keepstep) -> None:
    code, out, err = keepstep("config", "show", "--sead", "3", "--train.steps", "0")
    assert (code, out) == (ExitCode.CONFIG, "")
    assert err.splitlines() == [
        "keepstep: error: sead = '3' (command line --sead): no such setting; did you mean --seed?",
        (
            "keepstep: error: train.steps = '0' (command line --train.steps): "
            "must be a whole number > 0"
        ),
    ]


def test_help_names_every_verb(keepstep: Keepstep) -> None:
    code, out, _ = keepstep("--help")
    assert code == 0
    for verb in ("ls", "show", "verify", "config"):
        assert re.search(rf"^  {verb}: [A-Z].*\.$", out, re.MULTILINE)


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "URI", "--all"),
        ("show", "URI", "30"),
        ("verify", "URI", "--all"),
        ("report", "URI"),
        ("plan", "URI"),
        ("prune", "URI", "--keep", "last=1", "--dry-run"),
        ("gc", "URI", "--uploads", "--dry-run"),
    ],
    ids=lambda words: words[0],
)
def test_what_operations_calls_reading_writes_nothing(
    run: RunOnDisk, keepstep: Keepstep, words: tuple[str, ...]
) -> None:
    before = contents(run.root)
    keepstep(*(run.uri if word == "URI" else word for word in words))
    assert contents(run.root) == before


def contents(root: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def test_the_table_of_exit_codes_agrees_with_the_enumeration() -> None:
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    told = {
        int(code): name for code, name in re.findall(r"^\| (\d+) \| `(\w+)`", text, re.MULTILINE)
    }
    unused = {int(code) for code in re.findall(r"\d+", text.partition("fixes the numbers")[2][:20])}
    assert told == {int(code): code.name for code in ExitCode if code not in unused}


def test_the_table_of_errors_agrees_with_the_tree() -> None:
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (?:&emsp;)*`(\w+)`[^|]*\| (\d+) \|", text, re.MULTILINE)
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.KeepstepError)
    ]
    known = {(cls.__name__, str(int(cls.exit_code))) for cls in classes}
    assert set(told) == known - {("KeepstepError", "1")}


def in_a_process(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("verb", ["ls", "show", "verify", "config", "doctor", "copy", "gc"])
def test_no_verb_imports_torch(run: RunOnDisk, verb: str) -> None:
    words = {"ls": ["ls", run.uri], "show": ["show", run.uri, "30"]} | {
        "verify": ["verify", run.uri, "--all"],
        "config": ["config", "show"],
        "doctor": ["doctor", run.uri],
        "copy": ["copy", run.uri, f"{run.uri}-copy"],
        "gc": ["gc", run.uri, "--uploads"],
    }
    code = (
        "import sys; from keepstep.cli.main import main; code = main(); "
        "assert not {'torch', 'rich'} & set(sys.modules); sys.exit(code)"
    )
    done = in_a_process(code, *words[verb])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_ls_lists_once_and_reads_each_manifest_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunOnDisk(tmp_path)
    run.start()
    checkpoints = [run.save(step) for step in range(1, 31)]
    reads, lists = [], []
    get, listed = LocalStorage.get, LocalStorage.list
    monkeypatch.setattr(LocalStorage, "get", lambda self, key: reads.append(key) or get(self, key))
    monkeypatch.setattr(
        LocalStorage, "list", lambda self, prefix: lists.append(prefix) or listed(self, prefix)
    )
    assert main(["ls", run.uri]) == ExitCode.OK
    manifests = [key for key in reads if key.startswith("steps/")]
    assert sorted(manifests) == [checkpoint.key("manifest.json") for checkpoint in checkpoints]
    assert len(lists) <= 5, "the number of requests does not grow with what else is there"


def test_a_reader_that_leaves_early_causes_no_traceback(tmp_path: Path) -> None:
    run = RunOnDisk(tmp_path)
    run.start()
    run.save(1)
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from keepstep.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "ls", run.uri],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_is_130(run: RunOnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Catalog) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Catalog, "entries", interrupt)
    assert main(["ls", run.uri]) == 130


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (123_456_789, "123 MB"),
        (7 * 10**18, "7000 PB"),
    ],
)
def test_bytes_in_words(size_bytes: int, words: str) -> None:
    assert bytes_in_words(size_bytes) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0s"), (59, "59s"), (60, "1min"), (7200, "2h"), (200_000, "2d")],
)
def test_age_in_words(seconds: float, words: str) -> None:
    assert age_in_words(seconds) == words


def test_pairs_in_words() -> None:
    assert pairs_in_words({"loss": 1.23456, "steps": 3}) == "loss=1.235 steps=3"
    assert pairs_in_words({}) == "-"
