"""Generations and the valid line: one history, whatever zombies do."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_on_disk import RunOnDisk

from keepstep.commit.layout import CheckpointId, generation_key
from keepstep.commit.lineage import (
    Generation,
    check_not_fenced,
    claim_generation,
    read_generation,
    valid_line,
)
from keepstep.commit.pruning import Pruner
from keepstep.commit.starting import announced_start
from keepstep.config import parse_keep
from keepstep.errors import CoordinationError, FencedError, ObjectExists, StorageUnavailable
from keepstep.storage.base import Buffer
from keepstep.storage.local import LocalStorage
from keepstep.testing.memory_storage import MemoryStorage


def checkpoint(step: int, generation: int) -> CheckpointId:
    return CheckpointId(step, generation, "0" * 12)


def claims(*resumed_from: tuple[int, int] | None) -> dict[int, Generation]:
    """Generations 1, 2, ..., each with the (step, generation) it resumed from."""
    return {
        number: Generation(number, "", 1, "", checkpoint(*origin) if origin else None)
        for number, origin in enumerate(resumed_from, start=1)
    }


def test_the_line_of_one_generation_is_all_of_it() -> None:
    assert valid_line(claims(None)) == {1: None}


def test_a_parent_counts_up_to_where_its_successor_resumed() -> None:
    assert valid_line(claims(None, (20, 1))) == {2: None, 1: 20}


def test_a_generation_that_nobody_resumed_from_is_off_the_line() -> None:
    assert valid_line(claims(None, (20, 1), (20, 1))) == {3: None, 1: 20}


def test_a_fresh_start_cuts_the_line() -> None:
    assert valid_line(claims(None, None)) == {2: None}


def test_a_rollback_shortens_the_parent() -> None:
    assert valid_line(claims(None, (20, 1), (30, 2), (25, 2))) == {4: None, 2: 25, 1: 20}


def test_no_generations_no_line() -> None:
    assert valid_line({}) == {}


@given(st.data())
def test_at_most_one_commit_counts_for_each_step(draw: st.DataObject) -> None:
    """Each generation resumes from something on the line, commits on, and may go on as a zombie."""
    origins: list[tuple[int, int] | None] = [None]
    commits: dict[int, set[int]] = {1: set(range(10, 10 * draw.draw(st.integers(1, 6)), 10))}
    for number in range(2, 2 + draw.draw(st.integers(0, 5))):
        line = valid_line(claims(*origins))
        good = [
            (step, generation)
            for generation, last in line.items()
            for step in commits[generation]
            if last is None or step <= last
        ]
        origin = draw.draw(st.sampled_from([*good, None])) if good else None
        origins.append(origin)
        start = origin[0] if origin else 0
        commits[number] = set(range(start + 10, start + 10 * draw.draw(st.integers(1, 6)), 10))
        zombie = draw.draw(st.integers(1, number - 1))
        commits[zombie] |= {max(commits[zombie], default=0) + 10}
    line = valid_line(claims(*origins))
    counting = [
        step
        for generation, last in line.items()
        for step in commits[generation]
        if last is None or step <= last
    ]
    newest = max(line)
    assert len(counting) == len(set(counting))
    assert commits[newest] <= set(counting), "everything of the newest generation counts"


def test_claims_are_numbered_and_hold_what_they_resumed_from() -> None:
    storage = MemoryStorage()
    first = claim_generation(storage, newest_seen=0, world_size=4, resumed_from=None)
    second = claim_generation(storage, newest_seen=1, world_size=2, resumed_from=checkpoint(10, 1))
    assert (first.number, second.number) == (1, 2)
    assert read_generation(storage, 2) == second
    assert second.resumed_from == checkpoint(10, 1)


def test_of_two_process_groups_that_start_at_once_one_is_fenced() -> None:
    storage = MemoryStorage()
    claim_generation(storage, newest_seen=3, world_size=1, resumed_from=None)
    with pytest.raises(FencedError, match="generation 4") as caught:
        claim_generation(storage, newest_seen=3, world_size=1, resumed_from=None)
    assert caught.value.exit_code == 87


def test_a_claim_whose_reply_was_lost_is_still_ours() -> None:
    class LosesReply(MemoryStorage):
        def create(self, key: str, data: bytes | bytearray | memoryview) -> None:
            super().create(key, data)
            raise ObjectExists("retried after a lost reply", key=key)

    claim = claim_generation(LosesReply(), newest_seen=0, world_size=1, resumed_from=None)
    assert claim.number == 1


def test_an_older_generation_is_told_that_it_is_fenced() -> None:
    storage = MemoryStorage()
    claim_generation(storage, newest_seen=0, world_size=1, resumed_from=None)
    check_not_fenced(storage, 1)
    claim_generation(storage, newest_seen=1, world_size=1, resumed_from=None)
    with pytest.raises(FencedError, match="generation 2 has taken over"):
        check_not_fenced(storage, 1)


def test_files_that_are_not_claims_do_not_count() -> None:
    storage = MemoryStorage()
    storage.put("generations/notes.txt", b"")
    storage.put(generation_key(1) + ".bak", b"")
    check_not_fenced(storage, 0)


def test_a_claim_that_lands_late_finds_what_it_resumes_from(tmp_path: Path) -> None:
    run = RunOnDisk(tmp_path / "run")
    run.start()
    source = run.save(10)
    late: list[tuple[str, bytes]] = []

    class Unanswered(LocalStorage):
        def create(self, key: str, data: Buffer) -> None:
            late.append((key, bytes(data)))
            raise StorageUnavailable("no answer", key=key)

    with pytest.raises(StorageUnavailable), announced_start(Unanswered(run.root)) as start:
        claim_generation(
            Unanswered(run.root),
            newest_seen=start.newest_generation,
            world_size=1,
            resumed_from=source,
        )
    run.save(20)
    with pytest.raises(CoordinationError, match="is starting"):
        Pruner(run.storage, generation=1).prune(parse_keep("last=1"))
    run.storage.create(*late[0])
    assert run.catalog.latest() == source
