from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep.data import Loader, TokenDataset
from keepstep.data.documents import find_inputs
from keepstep.data.packing import pack_documents
from keepstep.data.prepare import prepare_tokens
from keepstep.data.tokenizers import open_tokenizer
from keepstep.errors import ConfigError


@given(lengths=st.lists(st.integers(1, 30), max_size=40), window=st.integers(1, 12))
def test_pieces_hold_all_tokens_and_cut_only_long_documents(
    lengths: list[int], window: int
) -> None:
    ends = np.cumsum(lengths, dtype=np.uint64)
    starts = ends - np.array(lengths, dtype=np.uint64)
    total = sum(lengths)
    cuts = pack_documents(starts, total, window).tolist()
    assert cuts[0] == 0
    assert cuts[-1] == total
    assert all(0 < stop - start <= window for start, stop in pairwise(cuts))
    for start, length in zip(starts.tolist(), lengths, strict=True):
        if length <= window:
            assert not any(start < cut < start + length for cut in cuts)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40), window=st.integers(9, 12))
def test_no_piece_could_have_held_the_next_document(lengths: list[int], window: int) -> None:
    ends = np.cumsum(lengths, dtype=np.uint64)
    starts = ends - np.array(lengths, dtype=np.uint64)
    cuts = pack_documents(starts, sum(lengths), window).tolist()
    length_of = dict(zip(starts.tolist(), lengths, strict=True))
    for start, stop in pairwise(cuts[:-1]):
        assert stop - start + length_of[stop] > window


@pytest.fixture
def directories(tmp_path: Path) -> list[Path]:
    made = []
    for name, text in {"a": "aa\nbbb\nc\ndddddddddddd\n", "b": "ee\nff\n"}.items():
        lines = [f'{{"text": "{line}"}}\n' for line in text.split()]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
        made.append(tmp_path / name)
        prepare_tokens(
            find_inputs([str(tmp_path / f"{name}.jsonl")]),
            made[-1],
            open_tokenizer("bytes"),
            shard_tokens=5,
            on_read=lambda size_bytes: None,
        )
    return made


def test_whole_documents_share_a_window_and_are_numbered(directories: list[Path]) -> None:
    dataset = TokenDataset(*directories, context=8, whole_documents=True)
    samples = [dataset[i] for i in range(len(dataset))]
    assert all(isinstance(sample, dict) for sample in samples)
    told = [(bytes(s["tokens"].tolist()), s["documents"].tolist()) for s in samples]
    assert told == [
        (b"aa\0bbb\0c\0", [1] * 3 + [2] * 4 + [3] * 2),
        (b"ddddddddd", [1] * 9),
        (b"ddd\0ee\0\0\0", [1] * 4 + [2] * 3 + [0] * 2),
        (b"ff\0\0\0\0\0\0\0", [1] * 3 + [0] * 6),
    ]


def test_windows_run_on_over_directories(directories: list[Path]) -> None:
    dataset = TokenDataset(*directories, context=9)
    assert bytes(dataset[0].tolist()) == b"aa\0bbb\0c\0d"
    assert bytes(dataset[2].tolist()) == b"ddd\0ee\0ff\0"
    assert len(dataset) == 3
    with pytest.raises(IndexError, match="sample 3 of 3"):
        dataset[3]


def test_a_loader_makes_batches_of_tokens_and_knows_how_they_are_cut(
    directories: list[Path],
) -> None:
    cut = Loader(TokenDataset(*directories, context=7), global_size=2)
    assert next(cut).shape == (2, 8)
    whole = Loader(TokenDataset(*directories, context=7, whole_documents=True), global_size=2)
    assert next(whole)["documents"].shape == (2, 8)
    with pytest.raises(ConfigError, match="data: "):
        whole.load_state_dict(cut.state_dict())
