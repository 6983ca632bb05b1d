"""The content digest: the same for every cut of a tensor, and different for every change."""

import itertools

import pytest
import torch

from keepstep.checkpoint.digest import ChunkPlace, chunk_digest, combined

DTYPES = (torch.float32, torch.bfloat16, torch.int8, torch.complex128, torch.bool)


def whole(tensor: torch.Tensor, fqn: str = "w") -> int:
    return chunk_digest(fqn, tensor, [0] * tensor.dim(), tensor.shape)


def boxes(shape: tuple[int, ...], cuts: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """A cut of ``shape`` into ``cuts[d]`` uneven parts along each dimension."""
    along = []
    for size, parts in zip(shape, cuts, strict=True):
        edges = sorted({0, size, *(size * (i * i) // (parts * parts) for i in range(parts))})
        along.append([slice(a, b) for a, b in itertools.pairwise(edges)])
    return list(itertools.product(*along))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [(1, 1, 1), (3, 1, 1), (1, 4, 1), (1, 1, 5), (2, 3, 4)])
def test_the_digest_of_all_chunks_is_the_tensors_in_every_cut(dtype, cuts):
    torch.manual_seed(0)
    tensor = torch.randint(0, 100, (6, 10, 600), dtype=torch.int32).to(dtype)
    chunks = [
        chunk_digest("w", tensor[box].contiguous(), [edge.start for edge in box], tensor.shape)
        for box in boxes(tuple(tensor.shape), cuts)
    ]
    assert combined(chunks) == whole(tensor)


@pytest.mark.parametrize("width", [4, 64, 700, 1000])
@pytest.mark.parametrize("piece_bytes", [8, 96, 1000, 4096])
def test_the_digest_of_all_pieces_is_the_chunks(width, piece_bytes):
    tensor = torch.arange(40 * 1000, dtype=torch.int64).reshape(40, 1000)
    chunk = tensor[3:37, 200 : 200 + width].contiguous()
    place = ChunkPlace.of("w", chunk.dtype, chunk.shape, (3, 200), tensor.shape)
    data = memoryview(chunk.reshape(-1).view(torch.uint8).numpy())
    pieces = [
        place.digest(start, data[start : start + piece_bytes])
        for start in range(0, len(data), piece_bytes)
    ]
    assert combined(pieces) == chunk_digest("w", chunk, (3, 200), tensor.shape)


def test_every_flipped_bit_changes_the_digest():
    tensor = torch.zeros(64, dtype=torch.int32)
    digests = {whole(tensor)}
    for place, bit in itertools.product(range(64), range(31)):
        flipped = tensor.clone()
        flipped[place] ^= 1 << bit
        digests.add(whole(flipped))
    assert len(digests) == 1 + 64 * 31


def test_the_digest_knows_name_dtype_shape_and_place():
    tensor = torch.arange(1, 13, dtype=torch.int32)
    others = [
        whole(tensor, "v"),
        whole(tensor.view(torch.float32)),
        whole(tensor.reshape(3, 4)),
        whole(tensor.flip(0)),
        chunk_digest("w", tensor, [1], [13]),
        chunk_digest("w", tensor, [0], [13]),
    ]
    assert len({whole(tensor), *others}) == 7


def test_swapping_equal_tensors_of_two_names_is_no_change_and_swapping_others_is():
    one, two = torch.ones(8), torch.full((8,), 2.0)
    assert combined([whole(one, "a"), whole(two, "b")]) != combined(
        [whole(two, "a"), whole(one, "b")]
    )


def test_scalars_and_empty_tensors_have_digests():
    assert whole(torch.tensor(3.0)) != whole(torch.tensor(4.0))
    assert whole(torch.empty(0, 5)) == 0
