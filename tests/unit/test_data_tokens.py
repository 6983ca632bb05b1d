import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from keepstep.data.tokens import open_tokens, prepare_stdlib
from keepstep.errors import ConfigError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_stdlib(tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    tokens = bytes(range(100))
    (tmp_path / "small.bin").write_bytes(tokens)
    sidecar = tmp_path / "small.tokens.json"
    fields = {"file": "small.bin", "dtype": "uint8", "vocabulary": 256, "length": 100}
    fields |= {"split": 95, "sha256": sha256(tokens).hexdigest(), "source": "", "python": ""}
    sidecar.write_text(json.dumps(fields))
    return sidecar


def test_stdlib_is_split_by_position_and_vouched_for(prepared: Path) -> None:
    tokens = open_tokens(prepared)
    whole = np.concatenate([tokens.train, tokens.validation])
    assert len(whole) == tokens.info.length > 5_000_000
    assert len(tokens.train) == tokens.info.length * 95 // 100
    assert sha256(whole.tobytes()).hexdigest() == tokens.info.sha256
    assert b"def dumps(" in whole.tobytes()


def test_preparing_again_changes_nothing(prepared: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.parent.iterdir()}
    assert prepare_stdlib(prepared.parent) == prepared
    assert {path: path.stat().st_mtime_ns for path in prepared.parent.iterdir()} == before
    assert len(before) == 2


def test_processes_that_prepare_at_once_agree(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from keepstep.data.tokens import open_tokens, prepare_stdlib\n"
        "sys.stdin.readline()\n"
        "print(open_tokens(prepare_stdlib(Path(sys.argv[1]))).info.sha256)\n"
    )
    start = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(start, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    digests = {racer.communicate(timeout=60)[0] for racer in racers}
    assert len(digests) == 1
    assert len(digests.pop()) == 65
    assert len(list(tmp_path.iterdir())) == 2


def test_one_flipped_bit_is_found(small: Path) -> None:
    path = small.parent / "small.bin"
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="SHA-256 differs"):
        open_tokens(small)


def test_truncation_is_found(small: Path) -> None:
    path = small.parent / "small.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"99 tokens where small\.tokens\.json says 100"):
        open_tokens(small)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"file": 1}'])
def test_broken_sidecar_is_named(small: Path, content: str) -> None:
    small.write_text(content)
    with pytest.raises(ConfigError, match=r"small\.tokens\.json: not a token sidecar"):
        open_tokens(small)


def test_missing_files_are_named(small: Path) -> None:
    (small.parent / "small.bin").unlink()
    with pytest.raises(ConfigError, match=r"small\.bin: cannot be read"):
        open_tokens(small)
    with pytest.raises(ConfigError, match="no such token file"):
        open_tokens(small.parent / "other.tokens.json")
