"""Killed and resumed equals uninterrupted, bit for bit: every combination, in one table.

python tests/multirank/matrix.py             all of them: minutes
python tests/multirank/matrix.py 'fsdp bf16' only those whose names hold these words
"""

import faulthandler
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # by torch.optim: once here, instead of in every rank
import torch.distributed as dist
from models import full_state
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.checkpoint import checkpoint

import keepstep.session
from keepstep import failpoints
from keepstep.data import Loader

STEPS, KILL_STEP, SAVE_EVERY = 8, 6, 2
RANKS = {"ddp": 2, "fsdp": 2, "hsdp": 4}
LATE_STEP = 5
"""At which a parameter is used for the first time: after the checkpoint that is resumed from."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True)
class Cell:
    """One combination; dropout is always on."""

    strategy: str
    precision: str
    accumulation: int
    optimizer: str
    recompute: bool

    def __str__(self) -> str:
        words = [self.strategy, self.precision, f"x{self.accumulation}", self.optimizer]
        return " ".join([*words, "recompute" if self.recompute else "plain"])


def cells() -> list[Cell]:
    """All of them."""
    return [
        Cell(*values)
        for values in product(
            RANKS, _DTYPES, (1, 3), ("adamw", "sgd momentum", "adamw frozen late"), (False, True)
        )
    ]


class Block(nn.Module):
    """With dropout, recomputed in backward if so wanted."""

    def __init__(self, width: int, *, recompute: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.2))
        self._recompute = recompute

    def forward(self, hidden: Tensor) -> Tensor:
        if not self._recompute:
            return hidden + self.inner(hidden)
        inner: Tensor = checkpoint(self.inner, hidden, use_reentrant=False)
        return hidden + inner


class Net(nn.Module):
    """Some parameters are frozen, or used late, or never, if so wanted."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(Block(6, recompute=cell.recompute) for _ in range(2))
        self.norm = nn.BatchNorm1d(6) if cell.strategy == "ddp" else nn.LayerNorm(6)
        self.last = nn.Linear(6, 1)
        self.is_late = False
        if "late" in cell.optimizer:
            self.late = nn.Parameter(torch.ones(6))
            self.never = nn.Parameter(torch.ones(3))
            self.first.bias.requires_grad_(requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        if self.is_late:
            hidden = hidden * self.late
        output: Tensor = self.last(self.norm(hidden))
        return output


def sharded(model: Net, cell: Cell) -> nn.Module:
    if cell.strategy == "ddp":
        return DistributedDataParallel(model, find_unused_parameters="late" in cell.optimizer)
    options: dict[str, Any] = {}
    if cell.precision != "fp32":
        dtype = _DTYPES[cell.precision]
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        options["mp_policy"] = policy
    if cell.strategy == "hsdp":
        options["mesh"] = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def optimizer_of(model: nn.Module, cell: Cell) -> Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if cell.optimizer.startswith("sgd"):
        return SGD(trained, lr=0.05, momentum=0.9, nesterov=True)
    return AdamW(trained, lr=0.01, weight_decay=0.1)


def train(rank: int, uri: str, cell: Cell, kill: bool) -> dict[str, Any]:
    """Train to the last step; all that must be equal, by name."""
    if kill:
        rule = f"write.middle=kill@rank:1@step:{KILL_STEP}"
        failpoints.arm(rule, rank=rank, restart_count=0)
    torch.manual_seed(0)
    net = Net(cell)
    model = sharded(net, cell)
    optim = optimizer_of(model, cell)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 20)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=256.0, growth_interval=3, enabled=cell.precision == "fp16"
    )
    torch.manual_seed(100 + rank)
    data = torch.utils.data.TensorDataset(torch.randn(40, 4, generator=torch.manual_seed(9)))
    torch.manual_seed(100 + rank)
    world_size = dist.get_world_size()
    microbatch = 2
    loader = Loader(
        data, global_size=microbatch * world_size * cell.accumulation, microbatch=microbatch
    )
    seen: dict[int, list[str]] = {}
    with keepstep.open(uri, every=SAVE_EVERY, timeout_seconds=30) as session:
        session.track(model=model, optim=optim, sched=sched, scaler=scaler, data=loader)
        session.restore()
        while session.step < STEPS:
            net.is_late = session.step + 1 >= LATE_STEP and "late" in cell.optimizer
            seen[session.step + 1] = [
                accumulate(model, scaler, inputs, weight, cell)
                for (inputs,), weight in loader.passes()
            ]
            scaler.unscale_(optim)
            with session.guard():
                scaler.step(optim)
                scaler.update()
                sched.step()
                optim.zero_grad(set_to_none=True)
            session.tick(samples=microbatch * world_size * cell.accumulation)
    state = full_state(model=model, optim=optim)
    if session.step - min(seen) > 1 and not _is_trained(state):
        msg = "no step was taken: there is nothing to compare"
        raise AssertionError(msg)
    state |= {"sched": sched.state_dict(), "scaler": scaler.state_dict(), "rng": torch.rand(4)}
    return {"seen": seen, "state": state}


def _is_trained(state: dict[str, Any]) -> bool:
    """Whether the optimizer has state: a scaler may have skipped every step."""
    return any(name.startswith(".optim.state.last.weight") for name in state)


def accumulate(
    model: nn.Module, scaler: torch.amp.GradScaler, inputs: Tensor, weight: float, cell: Cell
) -> str:
    """One microbatch; its samples and its loss, to the bit."""
    is_cast = cell.strategy == "ddp" and cell.precision != "fp32"
    cast = torch.autocast("cpu", dtype=_DTYPES[cell.precision]) if is_cast else nullcontext()
    with cast:
        loss = model(inputs).float().square().mean()
    scaler.scale(loss * weight).backward()
    return f"{inputs[:, 0].tolist()} {loss.item().hex()}"


def run(cell: Cell, uri: str, *, kill: bool = False) -> list[Any] | None:
    """What every rank returns, or ``None`` if one was killed; then the others are, at once."""
    context = get_context("fork")
    directory = Path(tempfile.mkdtemp())
    rendezvous = directory / "store"
    processes = [
        context.Process(target=_rank_main, args=(rank, cell, uri, kill, rendezvous))
        for rank in range(RANKS[cell.strategy])
    ]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in wait(list(running)):
            process = running.pop(int(sentinel))  # type: ignore[call-overload]
            process.join()
            if process.exitcode:
                for other in running.values():
                    os.kill(other.pid or 0, signal.SIGKILL)
    codes = [process.exitcode for process in processes]
    if -signal.SIGKILL in codes and kill:
        return None
    if any(codes):
        msg = f"{cell}: ranks ended with {codes}"
        raise RuntimeError(msg)
    return [
        pickle.loads((directory / f"rank-{rank}").read_bytes()) for rank in range(len(processes))
    ]


def _rank_main(rank: int, cell: Cell, uri: str, kill: bool, rendezvous: Path) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=RANKS[cell.strategy],
        timeout=_TIMEOUT,
    )
    result = train(rank, uri, cell, kill)
    rendezvous.with_name(f"rank-{rank}").write_bytes(pickle.dumps(result))
    dist.barrier()
    os._exit(0)


def differences(cell: Cell, directory: Path) -> list[str]:
    """Train uninterrupted, and killed and resumed; what differs, by name."""
    expected = run(cell, str(directory / "reference"))
    killed = run(cell, str(directory / "killed"), kill=True)
    if expected is None or killed is not None:
        return ["the rank that was to be killed was not"]
    resumed = run(cell, str(directory / "killed"))
    assert resumed is not None
    different = []
    for rank, (one, other) in enumerate(zip(expected, resumed, strict=True)):
        first = min(other["seen"])
        if first != KILL_STEP - SAVE_EVERY + 1:
            different.append(f"resumed at step {first - 1}")
        for step, microbatches in other["seen"].items():
            if microbatches != one["seen"][step]:
                different.append(f"rank {rank} step {step}: samples or losses")
        names = one["state"].keys() | other["state"].keys()
        different += [
            f"rank {rank}: {name}"
            for name in sorted(names)
            if not _equal(one["state"].get(name), other["state"].get(name))
        ]
    return different


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def table(results: dict[Cell, list[str]]) -> str:
    """In Markdown: a row for each way to train, a column for each optimizer."""
    optimizers = list(dict.fromkeys(cell.optimizer for cell in results))
    lines = [
        "| | " + " | ".join(optimizers) + " |",
        "| --- " * (len(optimizers) + 1) + "|",
    ]
    rows = dict.fromkeys(
        (cell.strategy, cell.precision, cell.accumulation, cell.recompute) for cell in results
    )
    for strategy, precision, accumulation, recompute in rows:
        name = f"{strategy}, {precision}, {accumulation} microbatch{'es' * (accumulation > 1)}"
        verdicts = [
            _verdict(results.get(Cell(strategy, precision, accumulation, optimizer, recompute)))
            for optimizer in optimizers
        ]
        lines.append(f"| {name}{', recompute' * recompute} | " + " | ".join(verdicts) + " |")
    return "\n".join(lines)


def _verdict(different: list[str] | None) -> str:
    if different is None:
        return "-"
    return "equal" if not different else f"DIFFERS: {different[0]}"


def main(words: list[str], show: Callable[[str], None] = print) -> int:
    results: dict[Cell, list[str]] = {}
    for cell in cells():
        if all(word in str(cell).split() for text in words for word in text.split()):
            with tempfile.TemporaryDirectory() as directory:
                results[cell] = differences(cell, Path(directory))
            sys.stderr.write(f"{cell}: {_verdict(results[cell])}\n")
    show(table(results))
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
