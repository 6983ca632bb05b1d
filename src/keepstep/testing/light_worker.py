"""A worker that only keeps step: adds up ones over gloo, and writes down each step.

Started by torchrun on each node, it shows within seconds whether the nodes form a group, how
large, and in which round. ``LIGHT_WORKER`` names the directory of its records. A file ``finish``
there makes all ranks end well after the same step.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

_BEGAN = time.time()

import torch  # noqa: E402  # timed
import torch.distributed as dist  # noqa: E402

from keepstep.launch.env import round_from, tell_agent_of_commit, world_from  # noqa: E402
from keepstep.launch.process_group import process_group  # noqa: E402

_IMPORTED = time.time()


def main() -> None:
    directory = Path(os.environ["LIGHT_WORKER"])
    step_seconds = float(os.environ.get("LIGHT_STEP_SECONDS", "0.1"))
    timeout_seconds = float(os.environ.get("LIGHT_TIMEOUT_SECONDS", "60"))
    commit_every = int(os.environ.get("LIGHT_COMMIT_EVERY", "0"))
    torch.set_num_threads(1)
    world = world_from(os.environ)
    who = {"pid": os.getpid(), "node": os.environ.get("LIGHT_NODE", ""), "rank": world.rank}
    where = {"world_size": world.world_size, "round": round_from(os.environ)}
    record = Record(directory / f"{who['node'] or 'node'}-{os.getpid()}.jsonl", who | where)
    record("began", at=_BEGAN)
    record("imported", at=_IMPORTED)
    device = torch.device("cpu")
    try:
        with process_group(world, os.environ, device, timeout_seconds=timeout_seconds):
            record("grouped")
            _keep_step(record, directory, step_seconds, commit_every)
    except RuntimeError as error:  # a peer is gone; the record tells when it was noticed
        record("failed", why=str(error).splitlines()[0][:200])
        raise
    record("finished")


class Record:
    """Appends one JSON line per event: the caller's facts, and the wall clock's time."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self._file = path.open("a")
        self._facts = facts

    def __call__(self, event: str, *, at: float | None = None, **facts: Any) -> None:
        line = {"event": event, "at": time.time() if at is None else at} | self._facts | facts
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _keep_step(record: Record, directory: Path, step_seconds: float, commit_every: int) -> None:
    step, is_finishing = 0, False
    while not is_finishing:
        time.sleep(step_seconds)
        step += 1
        sums = torch.tensor([1.0, float((directory / "finish").exists())])
        dist.all_reduce(sums)
        is_finishing = sums[1].item() > 0
        record("step", step=step, sum=int(sums[0].item()))
        if commit_every and step % commit_every == 0:
            tell_agent_of_commit(os.environ)


if __name__ == "__main__":
    main()
