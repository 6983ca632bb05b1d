"""``keepstep run``: what it restarts, when it gives up, and what it ends with."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launches import LIGHT_WORKER, is_gone, launch

from keepstep.elastic.health import WATCHING, look, places
from keepstep.errors import ExitCode

pytestmark = pytest.mark.drill


@pytest.mark.parametrize(
    ("deed", "code"),
    [
        ("commit", ExitCode.OK),
        ("store", ExitCode.STORAGE_UNAVAILABLE),
        ("71", ExitCode.DEVICE),
        ("78", ExitCode.CONFIG),
        ("85", ExitCode.PREEMPTED),
        ("86", ExitCode.PREEMPTED_UNSAVED),
        ("fence", ExitCode.FENCED),
    ],
)
def test_what_a_restart_would_not_help_ends_the_job_with_its_own_code(
    tmp_path: Path, deed: str, code: ExitCode
) -> None:
    with launch(tmp_path, LIGHT_WORKER, "5", deed) as job:
        assert job.end() == code, job.log
        assert job.starts == 1


@pytest.mark.parametrize("asked", ["auto", "gpu", "2"])
def test_a_node_whose_gpus_have_failed_ends_before_it_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    def no_driver() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that")

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "init", no_driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with socket.create_server(("127.0.0.1", 0)) as store:
        store.settimeout(0)
        rendezvous = ["--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{store.getsockname()[1]}"]
        words = [*rendezvous, "--nproc-per-node", asked, "--termination-log", "last"]
        with launch(tmp_path, *words, LIGHT_WORKER, "5") as job:
            assert job.end() == ExitCode.DEVICE, job.log
            assert job.starts == 0
            assert "CUDA finds 0 of the 2 GPUs that there should be" in job.log
            assert f"wrong with {socket.gethostname()}: look at nvidia-smi" in job.log
        with pytest.raises(BlockingIOError):
            store.accept()
    last_words = (tmp_path / "last").read_text()
    assert "exit code: 71 (DEVICE)" in last_words
    assert "Found no NVIDIA driver" in last_words


@pytest.mark.parametrize(("deed", "code"), [("75", 75), ("88", 88), ("raise", 1), ("kill", 1)])
def test_without_restarts_left_the_code_of_the_worker_remains(
    tmp_path: Path, deed: str, code: int
) -> None:
    with launch(tmp_path, "--max-restarts", "0", LIGHT_WORKER, "5", deed) as job:
        assert job.end() == code, job.log


def test_a_crash_loop_ends_after_three_tries_and_says_why(tmp_path: Path) -> None:
    with launch(tmp_path, "--nproc-per-node", "2", LIGHT_WORKER, "400", "raise@1") as job:
        assert job.end() == ExitCode.NO_PROGRESS, job.log
        assert job.starts == 3
        assert "3 tries in a row have committed nothing" in job.log
        failure = job.failure
    assert failure["exit_code"] == ExitCode.NO_PROGRESS
    assert failure["first"]["rank"] == 1
    assert failure["first"]["error"] == "ValueError: the data of step 4 are poisoned"
    assert (failure["first"]["section"], failure["first"]["step"]) == ("step", 3)
    assert failure["last_log_lines"][-1] == "ValueError: the data of step 4 are poisoned"
    assert [rank["collateral"] for rank in failure["ranks"]] == [True, False]
    assert failure["last_committed_step"] is None
    assert [(r["rank"], r["exit_code"], r["counted"]) for r in failure["restarts"]] == [
        (1, 1, True),
        (1, 1, True),
    ]


def test_failures_with_a_commit_in_between_are_put_up_with(tmp_path: Path) -> None:
    deeds = ["commit", "raise@0@0", "raise@0@1"]
    with launch(tmp_path, "--tries", "2", LIGHT_WORKER, "5", *deeds) as job:
        assert job.end() == ExitCode.OK, job.log
        assert job.starts == 3


def test_a_node_that_has_lost_a_peer_does_not_leave_for_what_its_launcher_did_then(
    tmp_path: Path,
) -> None:
    deeds = ["lose@0@0", "obey@1@0"]
    with launch(tmp_path, "--nproc-per-node", "2", LIGHT_WORKER, "5", *deeds) as job:
        assert job.end() == ExitCode.OK, job.log
        assert job.starts == 2
        assert job.failure["first"]["rank"] == 0


def test_ranks_of_a_loop_of_ones_own_meet_again_after_one_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(
        "import os, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "dist.all_reduce(torch.ones(1), group=dist.new_group(backend='gloo'))\n"
        "restart = os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        "open(f'met-{restart}-{dist.get_rank()}', 'w').close()\n"
        "if restart == '0' and dist.get_rank() == 1:\n"
        "    os.kill(os.getpid(), 9)\n"
        "dist.barrier()\n"
        "dist.destroy_process_group()\n"
    )
    with launch(tmp_path, "--nproc-per-node", "2", str(script)) as job:
        assert job.end() == ExitCode.OK, job.log
    assert (tmp_path / "met-1-0").exists()


@pytest.mark.parametrize("deed", ["obey", "wait"])
def test_a_signal_to_the_agent_is_one_to_the_workers_and_ends_with_their_code(
    tmp_path: Path, deed: str
) -> None:
    with launch(tmp_path, LIGHT_WORKER, "5", deed) as job:
        job.wait_for_file("waiting-0")
        job.signal(signal.SIGTERM)
        obeyed, killed = ExitCode.PREEMPTED, ExitCode.PREEMPTED_UNSAVED
        assert job.end() == (obeyed if deed == "obey" else killed), job.log
        assert job.starts == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["5", "commit"], ExitCode.OK, ["exit code: 0 (OK)", "last commit: step 3 of s3://b/run"]),
        (
            ["5", "commit", "raise"],
            ExitCode.ERROR,
            ["exit code: 1 (ERROR)", "step 3 of s3://b/run", "cause: rank 0 raised ValueError"],
        ),
        (["5", "77"], ExitCode.DENIED, ["exit code: 77 (DENIED)", "none known here of", "DENIED"]),
    ],
)
def test_the_last_words_are_code_commit_and_cause(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: ExitCode,
    words: list[str],
) -> None:
    monkeypatch.setenv("KEEPSTEP_URI", "s3://b/run")
    path = tmp_path / "termination-log"
    path.touch()  # as a kubelet does
    inode = path.stat().st_ino
    options = ["--max-restarts", "0", "--termination-log", str(path)]
    with launch(tmp_path, *options, LIGHT_WORKER, *arguments) as job:
        assert job.end() == code, job.log
    assert [word for word in words if word not in path.read_text()] == [], path.read_text()
    assert path.stat().st_ino == inode


def test_a_preempted_node_says_so_last_and_was_well_until_then(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    with launch(tmp_path, "--termination-log", str(path), LIGHT_WORKER, "5", "obey") as job:
        job.wait_for_file("waiting-0")
        mine = [one for one in look(places(), max_age_seconds=60) if one.pid == job.pid]
        assert [(one.section, one.problems) for one in mine] == [(WATCHING, ())]
        job.signal(signal.SIGTERM)
        assert job.end() == ExitCode.PREEMPTED, job.log
    assert "exit code: 85 (PREEMPTED)" in path.read_text()
    assert "cause: SIGTERM came to agent" in path.read_text()
    assert job.pid not in [one.pid for one in look(places(), max_age_seconds=60)]


def test_a_job_that_is_complete_ends_with_0_though_it_is_told_to_go(tmp_path: Path) -> None:
    words = tmp_path / "words"
    os.mkfifo(words)  # whoever has read it knows that the exit code is decided
    with launch(tmp_path, "--termination-log", str(words), LIGHT_WORKER, "5", "commit") as job:
        assert "exit code: 0" in words.read_text()
        job.signal(signal.SIGTERM)
        assert job.end() == ExitCode.OK, job.log


def test_a_launcher_that_is_stopped_is_found_ill(tmp_path: Path) -> None:
    with launch(tmp_path, LIGHT_WORKER, "5", "wait") as job:
        job.wait_for_file("waiting-0")
        job.signal(signal.SIGSTOP)

        def is_ill() -> bool:
            found = [one for one in look(places(), max_age_seconds=0.2) if one.pid == job.pid]
            return any("has not looked at its workers" in text for text in found[0].problems)

        job.wait_for(is_ill, "the finding")


def test_workers_die_with_their_agent(tmp_path: Path) -> None:
    with launch(tmp_path, "--nproc-per-node", "2", LIGHT_WORKER, "5", "wait") as job:
        for rank in range(2):
            job.wait_for_file(f"waiting-{rank}")
        job.signal(signal.SIGKILL)
        assert job.end() == -signal.SIGKILL
        pids = job.worker_pids()
        assert len(pids) == 2
        job.wait_for(lambda: all(map(is_gone, pids)), "the workers' end")


@pytest.mark.parametrize(
    "arguments", [["--no-such-option", "x.py"], ["missing.py"], ["--tries", "0", LIGHT_WORKER]]
)
def test_wrong_usage_is_told_before_anything_starts(tmp_path: Path, arguments: list[str]) -> None:
    with launch(tmp_path, *arguments) as job:
        assert job.end() == ExitCode.USAGE
        assert not list(tmp_path.glob("started-*"))


def test_plain_torchrun_has_no_watch_on_its_workers(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os\n"
        "from keepstep.launch.worker import begin_worker\n"
        "watchdog = begin_worker(os.environ)\n"
        "watchdog.begin('first step')\n"
        "watchdog.committed(3, is_new=True)\n"
        "watchdog.rest()\n"
    )
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("KEEPSTEP_")
    } | {"RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
    done = subprocess.run([sys.executable, worker], cwd=tmp_path, env=environ, check=False)
    assert done.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worker.py"]


_LOOPBACK = ["--nnodes", "1:2", "--rdzv-id", "x"]


@pytest.mark.long
def test_a_node_that_is_not_told_goes_on_without_being_charged(tmp_path: Path) -> None:
    from keepstep.testing.ports import claim_ports

    claim = claim_ports()
    endpoint = ["--rdzv-endpoint", f"localhost:{claim.first}", "--rdzv-conf", "last_call_timeout=2"]
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    # In the first round both nodes' workers leave, and one node was told.
    told = [*_LOOPBACK, *endpoint, LIGHT_WORKER, "5", "told", "85@@0"]
    stays = [*_LOOPBACK, *endpoint, "--tries", "1", LIGHT_WORKER, "5", "85@@0"]
    with launch(places[0], *told) as leaver, launch(places[1], *stays) as stayer:
        assert leaver.end() == ExitCode.PREEMPTED, leaver.log
        assert stayer.end() == ExitCode.OK, stayer.log
        assert "uncounted" in stayer.log
    claim.release()


@pytest.mark.long
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)
@pytest.mark.parametrize("deed", ["obey", "75", "raise"])
def test_as_pid_1_signals_are_heard_and_codes_kept(tmp_path: Path, deed: str) -> None:
    main = "import sys; from keepstep.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [
        *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
        *(sys.executable, "-c", main, "run", "--max-restarts", "0", LIGHT_WORKER, "5", deed),
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        if deed == "obey":
            while not (tmp_path / "waiting-0").exists():
                assert process.poll() is None, (tmp_path / "log").read_text()
            (launcher,) = (
                Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            )
            os.kill(int(launcher), signal.SIGTERM)
        expected = {"obey": ExitCode.PREEMPTED, "75": ExitCode.TRANSIENT, "raise": ExitCode.ERROR}
        assert process.wait(60) == expected[deed], (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


_TRAINER = [
    *("--nproc-per-node", "2", "-m", "keepstep.launch", "--uri", "run"),
    *("--train.steps", "60", "--train.evaluate_every", "20", "--checkpoint.every", "10"),
    *("--model.layers", "1", "--model.width", "16", "--batch.global_size", "4"),
    *("--data.validation_samples", "64", "--watchdog.floor_seconds", "3"),
]


@pytest.mark.long
def test_a_rank_of_the_trainer_that_is_stopped_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPSTEP_FAILPOINTS", "step.after=stop@rank:1@step:25")
    with launch(tmp_path, *_TRAINER) as job:
        assert job.end() == ExitCode.OK, job.log
        failure = job.failure
    assert (failure["first"]["rank"], failure["first"]["is_stopped"]) == (1, True)
    assert failure["last_committed_step"] == 20
    assert "committed=60" in job.log


@pytest.mark.long
def test_a_poisoned_step_ends_the_trainer_and_the_last_commit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEPSTEP_FAILPOINTS", "step.after=raise@rank:1@step:25@restart:any")
    with launch(tmp_path, *_TRAINER) as job:
        assert job.end() == ExitCode.NO_PROGRESS, job.log
        failure = job.failure
    assert failure["first"]["rank"] == 1
    assert failure["first"]["error"].startswith("FailpointError")
    assert failure["last_committed_step"] == 20
    assert len(failure["restarts"]) == 3, "after a try that was worth it, and two that were not"


@pytest.mark.long
def test_a_newest_checkpoint_that_kills_every_start_is_stepped_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = "step.after=kill@rank:1@step:25;load.middle=kill@step:20@restart:any"
    monkeypatch.setenv("KEEPSTEP_FAILPOINTS", kills)
    with launch(tmp_path, *_TRAINER) as job:
        assert job.end() == ExitCode.OK, job.log
        assert "steps over the newest checkpoint" in job.log
        assert "resumed from step 10 " in job.log
        assert "committed=60" in job.log
        failure = job.failure
    assert failure["last_committed_step"] == 20
    assert len(failure["restarts"]) == 2, "one after a commit, one in vain; then the last try"
    (mark,) = (tmp_path / "run" / "quarantine").iterdir()
    assert mark.name.startswith("000000000020-g000001")
