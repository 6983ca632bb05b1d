"""Signals, and deaths of the trainer: each in a process group of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_DATASET = """
import os, signal, sys, time
from keepstep.data import Loader

class Numbers:
    def __len__(self):
        return 100
    def __getitem__(self, index):
        return index, os.getpid()

class Hanging(Numbers):
    def __getitem__(self, index):
        os.write(1, f"{os.getpid()}\\n".encode())  # in one piece: two workers do
        time.sleep(3600)
"""


def start(code: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _DATASET + code]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)


def test_workers_outlive_the_notices_that_their_process_group_gets() -> None:
    code = """
noticed = set()
loader = Loader(Numbers(), global_size=4, num_workers=2, prefetch=1)
workers = {pid for _ in range(2) for pid in next(loader)[1].tolist()}
notices = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP}
for notice in notices:
    signal.signal(notice, lambda number, frame: noticed.add(number))
print("ready", flush=True)
while noticed != notices:
    time.sleep(0.01)
later = {pid for _ in range(20) for pid in next(loader)[1].tolist()}
assert workers == later and len(workers) == 2 and os.getpid() not in workers
print("read on")
"""
    process = start(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for notice in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        os.killpg(process.pid, notice)
    assert process.communicate(timeout=60)[0] == "read on\n"
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a death")
def test_workers_die_with_a_trainer_that_was_killed() -> None:
    process = start("next(Loader(Hanging(), global_size=4, num_workers=2))")
    assert process.stdout is not None
    assert process.stdin is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    assert len({*workers, process.pid}) == 3
    assert all(_is_alive(pid) for pid in workers)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    process.stdout.close()
    process.stdin.close()
    deadline = time.monotonic() + 60
    while any(_is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its trainer"
        time.sleep(0.01)


def test_a_worker_that_hangs_ends_when_the_trainer_tells_it_to() -> None:
    code = """
from multiprocessing import active_children
reading = Loader(Hanging(), global_size=1, num_workers=1)._read(range(1))
(worker,) = active_children()
sys.stdin.readline()
worker.terminate()
worker.join(60)
print(worker.exitcode, flush=True)
os._exit(0)
"""
    process = start(code)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() != ""  # it hangs now
    assert process.communicate("go\n", timeout=60)[0] == "0\n"


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
