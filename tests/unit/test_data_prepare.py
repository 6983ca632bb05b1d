import bz2
import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keepstep.cli.main import main
from keepstep.config import Config
from keepstep.config.schema import DataConfig
from keepstep.data import TokenDataset
from keepstep.data.documents import Place, find_inputs, read_pieces
from keepstep.data.prepare import Prepared, prepare_tokens
from keepstep.data.prepared import document_starts, map_tokens, read_index
from keepstep.data.text import open_prepared
from keepstep.data.tokenizers import open_tokenizer
from keepstep.errors import ConfigError, ExitCode
from keepstep.train.tasks import TextTask


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    root.mkdir()
    (root / ".hidden.txt").write_text("not a document")
    (root / "a.jsonl").write_bytes(lines("one", "zwei", "", "trois") + b"\n" + lines("\u56db"))
    (root / "b.jsonl.gz").write_bytes(gzip.compress(lines(*(f"document {i}" for i in range(50)))))
    (root / "c.txt").write_text("".join(f"line {i}\n" for i in range(200)) + "no newline")
    (root / "d.txt.bz2").write_bytes(bz2.compress(b"packed"))
    (root / "e.txt").write_text("")
    return root


def prepare(source: Path | str, output: Path, **options: Any) -> Prepared:
    options = {"on_read": lambda size_bytes: None, "shard_tokens": 300} | options
    return prepare_tokens(find_inputs([str(source)]), output, open_tokenizer("bytes"), **options)


def documents(directory: Path) -> list[bytes]:
    index = read_index(directory)
    tokens = np.concatenate(map_tokens(directory, index)).tobytes()
    starts = [*document_starts(directory, index).tolist(), index.tokens]
    return [tokens[start:end] for start, end in pairwise(starts)]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_document_is_there_in_order_with_its_end(corpus: Path, tmp_path: Path) -> None:
    index = prepare(corpus, tmp_path / "out").index
    found = documents(tmp_path / "out")
    assert found[:5] == [b"one\0", b"zwei\0", b"\0", b"trois\0", "\u56db\0".encode()]
    assert found[5:55] == [f"document {i}".encode() + b"\0" for i in range(50)]
    assert found[55] == (corpus / "c.txt").read_bytes() + b"\0"
    assert found[56:] == [b"packed\0"]
    assert (index.documents, index.tokens) == (57, sum(map(len, found)))
    assert len(index.shards) > 3


@pytest.mark.parametrize("shards_done", [0, 1, 3])
def test_a_killed_command_goes_on_with_the_shard_it_was_at(
    corpus: Path, tmp_path: Path, shards_done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepstep.data.documents._PIECE_BYTES", 100)
    monkeypatch.setattr("keepstep.data.prepare._BATCH_CHARACTERS", 50)
    whole = prepare(corpus, tmp_path / "whole")
    output = tmp_path / "out"

    def kill(size_bytes: int) -> None:
        parts = list(output.glob(".*.tokens.part"))
        if len(list(output.glob("*.note.json"))) == shards_done and parts:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        prepare(corpus, output, on_read=kill)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(list(output.glob("*.tokens.bin"))) == shards_done
    assert not (output / "tokens.json").exists()

    resumed = prepare(corpus, output)
    assert resumed.shards_before == shards_done
    assert resumed.index == whole.index
    assert contents(output) == contents(tmp_path / "whole")


def test_long_text_is_read_in_pieces_that_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepstep.data.documents._PIECE_BYTES", 10)
    (tmp_path / "long.txt").write_text("".join(f"line {i}\r\n" for i in range(20)))
    pieces = list(
        read_pieces(
            find_inputs([str(tmp_path / "long.txt")]),
            Place(),
            text_field="text",
            on_read=lambda size_bytes: None,
        )
    )
    assert len(pieces) > 5
    assert "".join(piece.text for piece in pieces).encode() == (tmp_path / "long.txt").read_bytes()
    assert [piece.begins for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_progress_comes_to_the_size_of_the_inputs(corpus: Path, tmp_path: Path) -> None:
    read: list[int] = []
    prepare(corpus, tmp_path / "out", on_read=read.append)
    whole = sum(file.size_bytes for file in find_inputs([str(corpus)]))
    assert sum(read) == whole
    (tmp_path / "out" / "tokens.json").unlink()
    resumed: list[int] = []
    prepare(corpus, tmp_path / "out", on_read=resumed.append)
    assert sum(resumed) == whole


def test_a_finished_directory_is_checked_and_left_alone(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = prepare(corpus, output)
    before = contents(output)
    again = prepare(corpus, output)
    assert again.index == first.index
    assert again.shards_before == len(first.index.shards)
    assert contents(output) == before
    damaged = bytearray((output / "00001.tokens.bin").read_bytes())
    damaged[7] ^= 1
    (output / "00001.tokens.bin").write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"00001\.tokens\.bin is not what was written"):
        prepare(corpus, output)


def test_other_inputs_do_not_go_on_in_the_same_directory(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"begun with other settings \(inputs;"):
        prepare(corpus / "a.jsonl", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"begun with other settings \(text_field, shard_tokens;"):
        prepare(corpus, tmp_path / "out", shard_tokens=301, text_field="x")


def test_two_at_once_are_refused(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with (output / ".prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="being prepared by another process"):
            prepare(corpus, output)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.jsonl", lines("a") + b"{\n", r"x\.jsonl line 2: not JSON"),
        (
            "x.jsonl",
            lines("a") + b"\n" + b'{"txt": "a"}\n',
            r"x\.jsonl line 3: .*'text' is missing",
        ),
        ("x.jsonl", b'{"text": 1}\n', r"line 1: the field 'text' is a int"),
        ("x.jsonl", b"[1]\n", r"line 1: a JSON list"),
        ("x.jsonl", b'{"text": "\xff"}\n', r"line 1: not UTF-8"),
        ("x.jsonl", b'{"text": "\\ud800"}\n', r"line 1: half a surrogate pair"),
        ("x.txt", b"fine\nfine\n\xff\n", r"x\.txt line 3: not UTF-8"),
        ("x.jsonl.gz", gzip.compress(lines("a") + b"{\n"), r"x\.jsonl\.gz line 2: not JSON"),
        ("x.jsonl.gz", gzip.compress(lines("a" * 99))[:-9], r"x\.jsonl\.gz: cannot be unpacked"),
        ("x.txt.gz", b"no gzip", r"x\.txt\.gz: cannot be unpacked"),
        ("x.txt.bz2", b"no bzip2", r"x\.txt\.bz2: cannot be unpacked"),
        ("x.txt.xz", b"no xz", r"x\.txt\.xz: cannot be unpacked"),
        ("x.txt", b"", "hold no text"),
    ],
)
def test_bad_input_is_named_and_leaves_no_index(
    tmp_path: Path,
    name: str,
    content: bytes,
    told: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        prepare(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out" / "tokens.json").exists()


def test_the_command_prepares_and_the_data_set_reads(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    arguments = ["data", "prepare", str(corpus / "[ab].json*"), "--output", output]
    assert main([*arguments, "--json"]) == ExitCode.OK
    summary = json.loads(capsys.readouterr().out)
    assert (summary["documents"], summary["dtype"], summary["shards"]) == (55, "uint8", 1)
    assert main(arguments) == ExitCode.OK
    assert "1 there already" in capsys.readouterr().out
    dataset = TokenDataset(output, context=16)
    assert bytes(dataset[0].tolist()) == b"one\0zwei\0\0trois\0\xe5"
    assert len(dataset) == (summary["tokens"] - 1) // 16


def test_the_command_needs_no_torch(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from keepstep.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    arguments = ["data", "prepare", str(corpus), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.txt"], "missing.txt: no such file"),
        (["nowhere/*.txt"], "nowhere/*.txt: no such file"),
        (["strange://x/y"], "strange://x/y: "),
        ([], "no input"),
        (["{corpus}", "--end-of-document", "x"], "no effect with bytes"),
        (["{corpus}", "--tokenizer", "missing.json"], "tokenizer"),
    ],
)
def test_the_command_says_what_is_wrong(
    corpus: Path,
    tmp_path: Path,
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [argument.format(corpus=corpus) for argument in arguments]
    code = main(["data", "prepare", *words, "--output", str(tmp_path / "out")])
    assert code == ExitCode.CONFIG
    assert told in capsys.readouterr().err


def test_a_url_is_shown_without_its_secrets() -> None:
    with pytest.raises(ConfigError) as caught:
        find_inputs(["strange://me:hunter2@host/path?token=abc"])
    assert "hunter2" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_inputs_may_lie_in_any_store_of_fsspec(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://prepare/x.jsonl", "wb") as file:
        file.write(lines("far", "away"))
    prepare("memory://prepare/*.jsonl", tmp_path / "out")
    assert documents(tmp_path / "out") == [b"far\0", b"away\0"]


def test_the_text_task_reads_what_was_prepared(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out")
    tokens = open_prepared(tmp_path / "out")
    whole = b"".join(documents(tmp_path / "out"))
    assert len(tokens.train) == len(whole) * 95 // 100
    read = [part.read(0, len(part)).tolist() for part in (tokens.train, tokens.validation)]
    assert bytes(read[0] + read[1]) == whole


def test_the_text_task_does_not_take_other_data_for_what_is_half_prepared(
    corpus: Path, tmp_path: Path
) -> None:
    prepare(corpus, tmp_path / "out")
    (tmp_path / "out" / "tokens.json").unlink()
    config = Config(data=DataConfig(path=str(tmp_path / "out")))
    with pytest.raises(ConfigError, match="or not yet: `keepstep data prepare`"):
        TextTask.open(config)


def test_a_missing_tokenizer_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'keepstep\[data\]'"):
        open_tokenizer(str(tmp_path / "tokenizer.json"))


def test_a_tokenizer_file_decides_dtype_and_end(corpus: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the data extra is not installed")
    words = {"document": 0, "one": 1, "zwei": 2, "[UNK]": 3, "</s>": 70000}
    model = tokenizers.models.WordLevel(words, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    opened = open_tokenizer(str(tmp_path / "tokenizer.json"))
    index = prepare_tokens(
        find_inputs([str(corpus / "a.jsonl"), str(corpus / "b.jsonl.gz")]),
        tmp_path / "out",
        opened,
        on_read=lambda size_bytes: None,
    ).index
    assert (index.dtype, index.vocabulary, index.end_of_document) == ("uint32", 70001, 70000)
    tokens = np.concatenate(map_tokens(tmp_path / "out", index)).tolist()
    assert tokens[:5] == [1, 70000, 2, 70000, 70000]
    with pytest.raises(ConfigError, match="no token <end>: name the one"):
        open_tokenizer(str(tmp_path / "tokenizer.json"), "<end>")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match="not a Hugging Face tokenizer file"):
        open_tokenizer(str(tmp_path / "broken.json"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}'])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokens.json").write_text(content)
    with pytest.raises(ConfigError, match=r"tokens\.json: not an index"):
        read_index(tmp_path)


def test_a_newer_index_and_none_at_all_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keepstep data prepare"):
        read_index(tmp_path)
    (tmp_path / "tokens.json").write_text('{"format": 2}')
    with pytest.raises(ConfigError, match="format 2; this keepstep reads 1"):
        read_index(tmp_path)


def test_a_shortened_shard_is_named(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "out")
    path = tmp_path / "out" / "00000.tokens.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"00000\.tokens\.bin: holds"):
        TokenDataset(tmp_path / "out", context=8)
