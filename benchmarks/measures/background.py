"""Asynchronous saves beside a training-like loop: stall, time until durable, slower steps."""

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.files import remove
from benchmarks.measures.durable import calm, is_right
from benchmarks.measures.roster import Roster
from benchmarks.peers import Peer, Pending
from benchmarks.usage import Meter, faulted_bytes

_IDLE_STEPS = 20


def measure(roster: Roster) -> None:
    """Start, release the tensors, train until durable. Round 0 also checks what was saved."""
    context = roster.context
    step = TrainingStep(context.state.device)
    for repetition, peer in roster.turns(context.scenario.repetitions):
        directory = context.directory / f"{peer.name}-{repetition}"
        saved = _measure_save(roster, peer, repetition, directory, step)
        if saved is not None:
            if repetition == 0 and not peer.is_limit:
                _check(roster, peer, saved)
            context.ranks.wait()
            if context.ranks.is_first:
                remove(saved)
        context.ranks.wait()


class TrainingStep:
    """A fixed piece of work: matrices for the cores or the GPU, and some pure Python."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rounds, width = (8, 4096) if device.type == "cuda" else (4, 512)
        self._matrix = torch.ones(width, width, device=device) / width

    def run(self) -> float:
        """Do it once; how long it took, in seconds."""
        began = time.perf_counter()
        product = self._matrix
        for _ in range(self._rounds):
            product = product @ self._matrix
        sum(number * number for number in range(20_000))
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def _measure_save(
    roster: Roster, peer: Peer, repetition: int, directory: Path, step: TrainingStep
) -> Path | None:
    if not roster.succeeds(peer, peer.prepare):
        return None
    calm(roster.context)
    idle_seconds = statistics.median(step.run() for _ in range(_IDLE_STEPS))
    with Meter() as meter:
        roster.context.ranks.wait()
        began = time.perf_counter()
        started = roster.attempt(peer, lambda: _start(peer, directory, step))
        if started is None:
            return None
        pending, stall_seconds, stall_faulted_bytes = started
        if repetition == 0 and not peer.is_limit:
            roster.context.state.wipe()  # the save must not see what training does from here on
        of_training = time.thread_time()
        steps = roster.attempt(peer, lambda: _train_until_durable(pending, step))
        of_training = time.thread_time() - of_training
        seconds = time.perf_counter() - began
    if steps is None:
        return None
    slower_seconds = sum(steps) - len(steps) * idle_seconds
    roster.report(
        peer,
        "async save",
        repetition,
        stall_seconds=stall_seconds,
        stall_faulted_bytes=stall_faulted_bytes,
        seconds=seconds,
        cpu_seconds=meter.cpu_seconds - of_training,
        extra_bytes=meter.extra_bytes,
        device_extra_bytes=meter.device_extra_bytes,
        faulted_bytes=meter.faulted_bytes,
        idle_step_seconds=idle_seconds,
        steps=len(steps),
        slowdown=statistics.mean(steps) / idle_seconds if steps else None,
        lost_seconds=stall_seconds + slower_seconds,
    )
    return pending.saved


def _start(peer: Peer, directory: Path, step: TrainingStep) -> tuple[Pending, float, int]:
    """Until the tensors may change: held for how long, in how much fresh memory."""
    faulted_before = faulted_bytes()
    began = time.perf_counter()
    pending = peer.start(directory)
    held_seconds = time.perf_counter() - began
    if peer.overlaps:
        step.run()  # forward and backward, before the optimizer changes anything
    began = time.perf_counter()
    pending.release()
    held_seconds += time.perf_counter() - began
    return pending, held_seconds, faulted_bytes() - faulted_before


def _train_until_durable(pending: Pending, step: TrainingStep) -> list[float]:
    """Run steps until the save is over; how long each took. *Raises:* what the save raises."""
    is_done = pending.is_done or _awaited(pending.wait)
    steps: list[float] = []
    while not is_done():
        steps.append(step.run())
    return steps


def _awaited(wait: Callable[[], object]) -> Callable[[], bool]:
    """Wait on another thread; the answer tells whether it is over, or raises what it raised."""
    over = threading.Event()
    failures: list[BaseException] = []

    def wait_there() -> None:
        try:
            wait()
        except BaseException as error:  # noqa: BLE001  # raised again where it is awaited
            failures.append(error)
        over.set()

    def is_over() -> bool:
        if not over.is_set():
            return False
        if failures:
            raise failures[0]
        return True

    threading.Thread(target=wait_there, daemon=True).start()
    return is_over


def _check(roster: Roster, peer: Peer, saved: Path) -> None:
    """What was saved is the state as it was at the call, not as training left it."""
    roster.context.state.wipe()
    if not (roster.succeeds(peer, lambda: peer.load(saved)) and is_right(roster, peer)):
        roster.context.state.fill()
