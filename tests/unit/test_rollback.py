"""``keepstep rollback``: an older step becomes the head of a new line."""

import json
from collections.abc import Callable

import pytest
from run_on_disk import RunOnDisk

from keepstep.commit.catalog import Status
from keepstep.commit.layout import ledger_key
from keepstep.commit.lineage import claim_generation, read_generation
from keepstep.commit.rollback import roll_back
from keepstep.commit.starting import announced_start
from keepstep.errors import ExitCode, FencedError
from keepstep.observability.ledger import END, Ledger
from keepstep.session.choosing import Chooser
from keepstep.storage.log import open_log

Keepstep = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ended(run: RunOnDisk) -> RunOnDisk:
    """A run whose job has ended in good order."""
    end(run)
    return run


def end(run: RunOnDisk) -> None:
    log = open_log(run.storage, ledger_key(run.generation, 0))
    Ledger(log, generation=run.generation, rank=0).record(END, step=30)


def committed(run: RunOnDisk) -> list[int]:
    return [candidate.step for candidate in reversed(run.catalog.candidates())]


def test_the_next_start_goes_on_from_there_and_later_steps_stay_superseded(
    ended: RunOnDisk, keepstep: Keepstep
) -> None:
    code, out, err = keepstep("rollback", ended.uri, "10")
    assert (code, err) == (0, "")
    assert out.startswith("generation 2: the next start goes on from step 10 (generation 1")
    assert "superseded: steps 20, 30" in out
    assert committed(ended) == [10]
    by_status = [(e.id.step, e.status) for e in ended.catalog.entries()]
    assert by_status[1:] == [(20, Status.SUPERSEDED), (30, Status.SUPERSEDED)]
    assert [c.step for c in Chooser(ended.storage).choose("auto").candidates] == [10]
    assert len(list((ended.root / "steps").iterdir())) == 3
    assert list((ended.root / "starting").iterdir()) == []


def test_rolling_back_to_what_was_superseded_undoes_it(
    ended: RunOnDisk, keepstep: Keepstep
) -> None:
    keepstep("rollback", ended.uri, "10")
    code, out, _ = keepstep("rollback", ended.uri, "30", "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["generation"], document["superseded"]) == (3, [])
    assert committed(ended) == [10, 20, 30]


def test_a_line_that_has_gone_on_can_be_left_and_found_again(
    ended: RunOnDisk, keepstep: Keepstep
) -> None:
    keepstep("rollback", ended.uri, "10")
    ended.generation = 2
    ended.start(resumed_from=ended.catalog.latest())
    ended.save(15)
    end(ended)
    assert committed(ended) == [10, 15]
    keepstep("rollback", ended.uri, "20")
    assert committed(ended) == [10, 20]
    keepstep("rollback", ended.uri, "15")
    assert committed(ended) == [10, 15]


def test_the_newest_needs_no_rollback(ended: RunOnDisk, keepstep: Keepstep) -> None:
    code, out, _ = keepstep("rollback", ended.uri, "30")
    assert code == 0
    assert "is what the next start goes on from already" in out
    assert ended.catalog.generations() == [1]


def test_a_job_that_may_be_training_is_not_stopped_without_a_yes(
    run: RunOnDisk, keepstep: Keepstep
) -> None:
    code, _, err = keepstep("rollback", run.uri, "10")
    assert code == ExitCode.USAGE
    assert "generation 1 has not ended in good order" in err
    assert "--yes" in err
    assert committed(run) == [10, 20, 30]
    assert keepstep("rollback", run.uri, "10", "--yes")[0] == 0
    assert committed(run) == [10]
    with pytest.raises(FencedError, match="generation 2 has taken over"):
        run.save(40)


def test_after_a_rollback_no_job_can_be_training(run: RunOnDisk, keepstep: Keepstep) -> None:
    keepstep("rollback", run.uri, "10", "--yes")
    assert read_generation(run.storage, 2).world_size == 0
    assert keepstep("rollback", run.uri, "20")[0] == 0
    assert committed(run) == [10, 20]


def test_a_damaged_step_is_no_head(ended: RunOnDisk, keepstep: Keepstep) -> None:
    ended.path(ended.catalog.candidates()[-1], "__0_0.distcp").unlink()
    code, _, err = keepstep("rollback", ended.uri, "10")
    assert code == ExitCode.DAMAGED
    assert "__0_0.distcp: is missing" in err
    assert ended.catalog.generations() == [1]


@pytest.mark.parametrize("status", ["quarantined", "uncommitted", "gone"])
def test_only_what_was_committed_and_is_whole_can_be_gone_back_to(
    ended: RunOnDisk, keepstep: Keepstep, status: str
) -> None:
    step = {"quarantined": "10", "uncommitted": "25", "gone": "17"}[status]
    ended.catalog.quarantine(ended.catalog.candidates()[-1], "block 3 is damaged")
    ended.leave_unfinished(25)
    code, _, err = keepstep("rollback", ended.uri, step)
    assert code == ExitCode.NO_CHECKPOINT
    assert status == "gone" or f"is {status} in" in err
    assert ended.catalog.generations() == [1]


def test_a_job_that_starts_meanwhile_wins(ended: RunOnDisk) -> None:
    newest, *_, first = ended.catalog.candidates()
    with announced_start(ended.storage) as start:
        claim_generation(ended.storage, newest_seen=1, world_size=2, resumed_from=newest)
        with pytest.raises(FencedError, match="another process group started generation 2"):
            roll_back(ended.storage, first, start)
    assert committed(ended) == [10, 20, 30]
