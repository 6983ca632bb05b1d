"""Which rank failed first, in what words, and what is written about it."""

import json
import os
from pathlib import Path

import pytest

from keepstep.errors import ExitCode
from keepstep.launch.failure import (
    Failure,
    RankEnd,
    first_failing,
    is_waiting,
    last_lines,
    rank_ends,
)


def end(rank: int, exit_code: int = 1, failed_ns: int = 100, **fields: object) -> RankEnd:
    return RankEnd(
        rank=rank,
        local_rank=rank,
        pid=1000 + rank,
        exit_code=exit_code,
        failed_ns=failed_ns,
        **fields,  # type: ignore[arg-type]
    )


def test_whoever_failed_first_is_named() -> None:
    assert first_failing([end(0, failed_ns=7), end(1, failed_ns=5), end(2, 0, 1)]).rank == 1


def test_who_complains_of_its_peers_is_not_why_they_failed() -> None:
    lost_its_peer = end(0, 75, failed_ns=5, error="CoordinationError: could not reach its peers")
    assert first_failing([lost_its_peer, end(1, failed_ns=50, error="ValueError: x")]).rank == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"exit_code": 85},
        {"exit_code": 86, "told_ns": 60},
        {"exit_code": -15},
        {"exit_code": -9, "is_killed": True},
    ],
    ids=["in its load", "in a step", "no handler", "by force"],
)
def test_who_is_ended_because_another_has_ended_is_not_why(fields: dict[str, object]) -> None:
    lost_its_peer = end(0, 75, failed_ns=50, error="CoordinationError: could not reach its peers")
    assert first_failing([lost_its_peer, end(1, failed_ns=90, **fields)]).rank == 0  # type: ignore[arg-type]


def test_who_was_told_to_go_before_others_failed_is_why() -> None:
    lost_its_peer = end(0, 75, failed_ns=50, error="CoordinationError: could not reach its peers")
    assert first_failing([lost_its_peer, end(1, 85, failed_ns=90, told_ns=40)]).rank == 1


def test_of_ranks_that_hang_the_one_that_does_not_wait_is_named() -> None:
    waiting = end(0, 88, deadline_ns=5, is_overdue=True, is_waiting=True)
    looping = end(1, 88, deadline_ns=6, is_overdue=True)
    assert first_failing([waiting, looping]).rank == 1


def test_of_ranks_that_all_wait_the_first_overdue_is_named() -> None:
    late = end(0, 88, deadline_ns=6, is_overdue=True, is_waiting=True)
    early = end(1, 88, deadline_ns=5, is_overdue=True, is_waiting=True)
    assert first_failing([late, early]).rank == 1


def test_a_rank_that_is_stopped_is_why_others_fail() -> None:
    lost_its_peer = end(0, 75, failed_ns=5)
    stopped = end(1, -9, failed_ns=50, is_stopped=True)
    assert first_failing([lost_its_peer, stopped]).rank == 1
    assert stopped.status == ExitCode.HUNG


def test_who_crashed_before_others_were_overdue_is_named() -> None:
    waiting = end(0, 88, failed_ns=90, deadline_ns=60, is_overdue=True)
    crashed = end(1, 78, failed_ns=50)
    assert first_failing([waiting, crashed]).rank == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"exit_code": -9}, "was ended by SIGKILL"),
        ({"exit_code": 78}, "ended with 78 (CONFIG)"),
        ({"exit_code": 42}, "ended with 42"),
        ({"error": "ValueError: x"}, "raised ValueError: x"),
        (
            {"exit_code": 88, "is_overdue": True, "section": "eval", "step": 4},
            "hung in section 'eval', after step 4",
        ),
    ],
)
def test_an_end_in_words(fields: dict[str, object], words: str) -> None:
    assert end(0, **fields).what == words  # type: ignore[arg-type]


_STACKS = """Timeout (0:01:00)!
Thread 0x00007f01 (most recent call first):
  File "/site-packages/torch/distributed/distributed_c10d.py", line 1 in wait
  File "/python/threading.py", line 975 in run

Thread 0x00007f02 (most recent call first):
  File "{place}", line 3112 in work
  File "train.py", line 7 in <module>
"""


@pytest.mark.parametrize(
    ("place", "waits"),
    [
        ("/site-packages/torch/distributed/distributed_c10d.py", True),
        ("/site-packages/keepstep/train/gradients.py", True),
        ("/home/me/data.py", False),
        ("/torch/distributed/elastic/multiprocessing/errors/__init__.py", False),
    ],
)
def test_only_the_main_threads_place_counts(place: str, *, waits: bool) -> None:
    assert is_waiting(_STACKS.format(place=place)) is waits


def test_without_stacks_nobody_is_known_to_wait() -> None:
    assert not is_waiting("")


def test_when_an_error_was_raised_counts_not_when_its_process_was_through(tmp_path: Path) -> None:
    for rank, raised_at in enumerate([2_000_000_000, 1_000_000_000]):
        path = tmp_path / f"error-{rank}.json"
        path.write_text(json.dumps({"message": {"message": f"ValueError: {rank}"}}))
        os.utime(path, ns=(raised_at, raised_at))
    ends = rank_ends(
        {},
        {0: (0, 10, 1), 1: (1, 11, 1)},
        heartbeats=tmp_path,
        error_files={0: str(tmp_path / "error-0.json"), 1: str(tmp_path / "error-1.json")},
        logs={},
    )
    assert [one.error for one in ends] == ["ValueError: 0", "ValueError: 1"]
    assert first_failing(ends).rank == 1


@pytest.mark.parametrize("content", ["", "{", '{"message": "plain"}', "[]"])
def test_error_files_of_any_kind_are_put_up_with(tmp_path: Path, content: str) -> None:
    (tmp_path / "error.json").write_text(content)
    (one,) = rank_ends(
        {},
        {3: (0, 10, 1)},
        heartbeats=tmp_path,
        error_files={0: str(tmp_path / "error.json")},
        logs={},
    )
    assert one.error == ("plain" if "plain" in content else "")


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(100)))
    lines = last_lines(tmp_path / "log")
    assert (len(lines), lines[-1]) == (20, "line 99")
    assert last_lines(tmp_path / "none") == []


def test_what_nccl_aborts_with_is_what_the_rank_raised(tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    log.write_text(
        "[rank0]:[E] Process group watchdog thread terminated with exception: NCCL error\n"
        "terminate called after throwing an instance of 'c10::DistBackendError'\n"
        "  what():  [PG ID 0 Rank 0] Process group watchdog thread terminated with exception: "
        "NCCL error: remote process exited or there was a network error\n"
        + "".join(f"frame #{n}: somewhere in a library\n" for n in range(40))
    )
    (one,) = rank_ends(
        {}, {0: (0, 10, -6)}, heartbeats=tmp_path, error_files={}, logs={0: str(log)}
    )
    assert one.error.startswith("c10::DistBackendError: [PG ID 0 Rank 0] Process group watchdog")
    assert one.has_lost_peer
    (other,) = rank_ends(
        {}, {0: (0, 10, -11)}, heartbeats=tmp_path, error_files={}, logs={0: str(log)}
    )
    assert not other.error


def test_who_waits_in_vain_may_be_another_nodes_victim() -> None:
    assert end(0, 88, is_overdue=True, is_waiting=True).may_be_others
    assert not end(0, 88, is_overdue=True).may_be_others


def test_a_failure_is_written_whole_and_told_briefly(tmp_path: Path) -> None:
    ends = [end(0, -15, 9), end(1, 1, 5, error="ValueError: x", committed_step=10)]
    failure = Failure(
        ends=ends,
        first=ends[1],
        decision="restarting",
        exit_code=1,
        last_committed_step=10,
        restarts=[{"rank": 0}],
        log_lines=["boom"],
        log_directory="logs",
        node=0,
        num_nodes=1,
    )
    failure.write(tmp_path / "failure.json")
    document = json.loads((tmp_path / "failure.json").read_text())
    assert document["first"]["error"] == "ValueError: x"
    assert document["last_committed_step"] == 10
    assert [one["collateral"] for one in document["ranks"]] == [True, False]
    assert document["ranks"][0]["signal"] == "SIGTERM"
    assert [path.name for path in tmp_path.iterdir()] == ["failure.json"]
    assert failure.summary().splitlines() == [
        "rank 1 raised ValueError: x",
        "  collateral: rank 0 was ended by SIGTERM",
        "  committed up to step 10; restarts so far: 1",
        "  restarting",
    ]
