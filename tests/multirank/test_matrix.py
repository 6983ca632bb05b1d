"""Killed in the middle of a save and resumed: the same bits as without, however it is trained."""

from pathlib import Path

import pytest
from matrix import Cell, cells, differences, main, table

from keepstep.state.app_state import AppState

_BY_DEFAULT = {
    "ddp fp16 x3 adamw frozen late recompute",
    "fsdp bf16 x3 sgd momentum recompute",
    "hsdp fp32 x1 adamw plain",
}


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, marks=() if str(cell) in _BY_DEFAULT else pytest.mark.long, id=str(cell))
        for cell in cells()
    ],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, cell: Cell) -> None:
    assert differences(cell, tmp_path) == []


def test_the_defaults_are_among_the_cells() -> None:
    assert len(cells()) == 108
    assert set(map(str, cells())) >= _BY_DEFAULT


def test_the_table_names_what_differs() -> None:
    one, other = cells()[0], cells()[2]
    assert table({one: [], other: ["rank 0: .model.first.weight"]}).splitlines() == [
        "| | adamw | sgd momentum |",
        "| --- | --- | --- |",
        "| ddp, fp32, 1 microbatch | equal | DIFFERS: rank 0: .model.first.weight |",
    ]


def test_nothing_chosen_is_an_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no such words"]) == 0
    assert capsys.readouterr().out.startswith("| |")


def test_a_restore_that_leaves_the_generators_out_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AppState, "load_rng", lambda *_: None)
    monkeypatch.setattr(AppState, "check_restored", lambda *_, **__: None)  # it would notice first
    different = differences(cells()[0], tmp_path)
    assert "rank 0 step 5: samples or losses" in different
    assert "rank 0: rng" in different
