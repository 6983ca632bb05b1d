"""Every format ever released loads for ever, bit for bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from models import adamw, build, full_state, open_session

from golden.write import as_json
from keepstep.commit.canonical import FORMAT_VERSION
from keepstep.commit.catalog import Catalog, Status
from keepstep.commit.verify import verify_checkpoint
from keepstep.storage.local import LocalStorage
from rank_processes import RunRanks

HERE = Path(__file__).parent
FORMATS = sorted(HERE.glob("format-*"))


def test_the_current_format_has_a_golden_directory() -> None:
    assert HERE / f"format-{FORMAT_VERSION}" in FORMATS


@pytest.mark.parametrize("golden", FORMATS, ids=lambda path: path.name)
def test_it_lists_and_verifies_without_torch(golden: Path) -> None:
    storage = LocalStorage(golden / "run")
    entries = Catalog(storage).entries()
    assert [(e.id.step, e.status) for e in entries] == [
        (1, Status.COMMITTED),
        (2, Status.COMMITTED),
    ]
    assert [verify_checkpoint(storage, entry.id) for entry in entries] == [[], []]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("golden", FORMATS, ids=lambda path: path.name)
def test_it_loads_bit_for_bit(
    run_ranks: RunRanks, tmp_path: Path, golden: Path, ranks: int
) -> None:
    shutil.copytree(golden / "run", tmp_path / "run")
    expected = json.loads((golden / "expected.json").read_text())
    for loaded in run_ranks(ranks, load, str(tmp_path / "run")):
        assert json.loads(json.dumps(loaded)) == expected


def load(rank: int, uri: str) -> dict[str, Any]:
    model = build("fsdp", seed=9)
    optimizer = adamw(model)
    with open_session(uri) as session:
        session.track(model=model, optim=optimizer)
        assert session.restore().step == 2
    return as_json(full_state(model=model, optim=optimizer))
