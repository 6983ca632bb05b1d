"""One rank of one launch: ``python -m benchmarks.worker JOB``, started by ``launching``."""

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.measures import background, durable, remote, resharding, soak, transfer
from benchmarks.measures.roster import Roster
from benchmarks.peers import Context
from benchmarks.ranks import Ranks, Rows
from benchmarks.scenario import Scenario
from benchmarks.state import TrainingState

_SLICE_PART, _SLICE_PARTS = 3, 8


def main() -> None:
    """Build the state, let the peers take their turns, write the rows."""
    job = json.loads(sys.argv[1])
    scenario = Scenario.from_json(job["scenario"])
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)  # ranks share the cores; a peer's own threads are its own business
    is_slice = scenario.section == "slice" and job["work"] == "load"
    part, parts = (_SLICE_PART, _SLICE_PARTS) if is_slice else (rank, count)
    _join(part, parts, is_alone_among_many=is_slice)
    rows = Rows(Path(job["rows"]) / f"rank-{rank}.jsonl")
    state = TrainingState(scenario, part=part, parts=parts)
    rows.write("", "state", 0, local_bytes=state.local_bytes, tensors=len(state.tensors))
    gc.freeze()  # what is here now is no garbage: later collections need not look at it
    ranks = Ranks(rank, 1 if is_slice else count)
    roster = Roster(Context(scenario, ranks, state, Path(job["directory"])), rows)
    _measure(roster, job["work"])
    roster.close()
    rows.close()
    ranks.wait()
    dist.destroy_process_group()


def _measure(roster: Roster, work: str) -> None:
    match roster.context.scenario.section:
        case "durable":
            durable.measure(roster)
        case "background":
            background.measure(roster)
        case "soak":
            soak.measure(roster)
        case "remote":
            remote.measure(roster)
        case "transfer":
            transfer.measure(roster)
        case "reshard" | "slice":
            step = resharding.keep if work == "keep" else resharding.measure
            step(roster)


def _join(rank: int, count: int, *, is_alone_among_many: bool) -> None:
    """A gloo group; for a slice a process that takes itself for one of many."""
    if not is_alone_among_many:
        dist.init_process_group("gloo", rank=rank, world_size=count)
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)


if __name__ == "__main__":
    main()
