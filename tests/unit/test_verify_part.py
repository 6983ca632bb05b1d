"""Verification spread over days: every block is read, none twice."""

from collections.abc import Callable
from datetime import date, timedelta

import pytest
from run_on_disk import RunOnDisk

from keepstep.commit.blocks import FileBlocks
from keepstep.commit.layout import shard_filename
from keepstep.commit.part import Part, parse_part, part_of_day
from keepstep.commit.verify import verify_checkpoint
from keepstep.errors import ConfigError

MakeRun = Callable[..., RunOnDisk]


def blocks_of(count: int, name: str = "rank00000.shard") -> FileBlocks:
    return FileBlocks(
        file=name, size_bytes=64 * count, digest="crc64:0", block_bytes=64, blocks=(0,) * count
    )


@pytest.mark.parametrize("count", [0, 1, 3, 7, 100])
@pytest.mark.parametrize("parts", [1, 2, 7, 30])
def test_the_parts_are_all_blocks_each_of_them_once(count: int, parts: int) -> None:
    read = [n for number in range(parts) for n in Part(number, parts).blocks_of(blocks_of(count))]
    assert sorted(read) == list(range(count))


def test_small_files_are_not_all_read_on_the_same_day() -> None:
    files = [blocks_of(1, f"rank{rank:05}.shard") for rank in range(32)]
    days = {number for number in range(7) for f in files if Part(number, 7).blocks_of(f)}
    assert len(days) > 3


@pytest.mark.parametrize("step_days", [1, 7])
@pytest.mark.parametrize("parts", [2, 7, 30])
def test_daily_and_weekly_runs_come_round_to_all_parts(step_days: int, parts: int) -> None:
    days = [date(2026, 3, 1) + timedelta(days=step_days * n) for n in range(2 * parts)]
    assert {part_of_day(day, parts) for day in days} == set(range(parts))


def test_a_part_is_written_as_people_count() -> None:
    today = date(2026, 3, 1)
    assert parse_part("all", today) == Part(0, 1)
    assert parse_part("3/7", today) == Part(2, 7)
    assert parse_part("rotate/7", today) == Part(part_of_day(today, 7), 7)
    assert str(Part(2, 7)) == "3/7"


@pytest.mark.parametrize(
    "text", ["", "0/7", "8/7", "7", "rotate", "rotate/0", "1/0", "-1/7", "a/b"]
)
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="rotate/7"):
        parse_part(text, date(2026, 3, 1))


def test_a_rotten_block_is_found_on_one_day_of_each_round(run: RunOnDisk) -> None:
    checkpoint = run.newest
    assert checkpoint is not None
    path = next((run.root / checkpoint.prefix).glob(shard_filename(0, 0)))
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    path.write_bytes(data)
    found = [verify_checkpoint(run.storage, checkpoint, Part(n, 3)) for n in range(3)]
    assert [len(damages) for damages in found if damages] == [1]
    assert next(damages[0] for damages in found if damages).block == 1


def test_a_missing_file_is_found_every_day(run: RunOnDisk) -> None:
    checkpoint = run.newest
    assert checkpoint is not None
    next((run.root / checkpoint.prefix).glob(shard_filename(0, 0))).unlink()
    for number in range(7):
        assert verify_checkpoint(run.storage, checkpoint, Part(number, 7))
