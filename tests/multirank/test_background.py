"""Saves in the background: what they hold, when they wait, how they fail, and what they leave."""

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from models import adamw, assert_equal, build, full_state, open_session, step
from torch.testing._internal.two_tensor import TwoTensor

import keepstep
from keepstep.checkpoint.staging import StagedContents
from keepstep.checkpoint.store import C10dStore
from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import ledger_key
from keepstep.errors import CommitAborted, ConfigError
from keepstep.observability.ledger import read_ledger
from keepstep.storage.local import LocalStorage
from keepstep.storage.local_writing import FileWriter
from rank_processes import RunRanks

BACKGROUND = ["async", "overlap"]


class Gate:
    """Holds back every write to a shard file while it is closed."""

    def __init__(self) -> None:
        self._is_open = threading.Event()
        self._is_open.set()
        self.reached = threading.Event()

    def close(self) -> None:
        self.reached.clear()
        self._is_open.clear()

    def open(self) -> None:
        self._is_open.set()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write = FileWriter.write

        def gated(writer: FileWriter, offset: int, data: Any) -> None:
            self.reached.set()
            assert self._is_open.wait(60)
            write(writer, offset, data)

        monkeypatch.setattr(FileWriter, "write", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    gate.install(monkeypatch)
    yield gate
    gate.open()


class Training:
    """A model, its optimizer and a session, on one rank."""

    def __init__(self, uri: Path, **options: Any) -> None:
        self.model = build("none")
        self.optimizer = adamw(self.model)
        self.session = keepstep.open(
            str(uri), **{"every": "1000steps", "timeout_seconds": 20, **options}
        )
        self.session.track(model=self.model, optim=self.optimizer).restore()

    def step(self, *, is_guarded: bool = True) -> None:
        self.model(torch.randint(0, 37, (6,))).backward()
        if is_guarded:
            with self.session.guard():
                self.optimizer.step()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.session.tick()

    def change(self) -> None:
        """What an optimizer step does, and nothing else."""
        self.model(torch.randint(0, 37, (6,))).backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return full_state(model=self.model, optim=self.optimizer)


def steps_in(uri: Path) -> list[int]:
    return [candidate.step for candidate in reversed(Catalog(LocalStorage(uri)).candidates())]


def events(uri: Path, name: str) -> list[dict[str, Any]]:
    log = (uri / ledger_key(1, 0)).read_bytes()
    return [event for event in read_ledger(log) if event["event"] == name]


def restored(uri: Path) -> dict[str, Any]:
    model = build("none", seed=9)
    optimizer = adamw(model)
    with open_session(str(uri)) as session:
        session.track(model=model, optim=optimizer).restore()
        return full_state(model=model, optim=optimizer)


@pytest.mark.parametrize("mode", BACKGROUND)
def test_training_goes_on_and_what_is_saved_stays_as_it_was(
    tmp_path: Path, gate: Gate, mode: str
) -> None:
    training = Training(tmp_path, mode=mode)
    with training.session as session:
        for _ in range(3):
            training.step()
        expected = training.state()
        gate.close()
        save = session.save()
        for _ in range(4):
            training.step()
        assert gate.reached.wait(60)
        assert not save.is_over
        assert steps_in(tmp_path) == []
        gate.open()
        assert save.committed().step == 3
        assert steps_in(tmp_path) == [3]
        training.step()
        assert session.latest is not None
        assert session.latest.step == 3
        session.step = 3  # leave the block without another save
    assert_equal(restored(tmp_path), expected)


@pytest.mark.parametrize("mode", BACKGROUND)
def test_a_save_that_is_due_waits_for_the_one_in_flight(
    tmp_path: Path, gate: Gate, mode: str
) -> None:
    training = Training(tmp_path, mode=mode, every=2)
    gate.close()
    with training.session:
        for _ in range(3):
            training.step()
        opener = threading.Timer(0.3, gate.open)
        opener.start()
        training.step()
        assert 2 in steps_in(tmp_path), "step 4 began once step 2 was committed"
        opener.join()
    assert steps_in(tmp_path) == [2, 4]


def test_a_save_that_is_due_is_skipped_if_so_wanted_and_that_is_told_once(
    tmp_path: Path, gate: Gate
) -> None:
    training = Training(tmp_path, every=1, when_busy="skip")
    gate.close()
    with training.session as session:
        for _ in range(4):
            training.step()
        gate.open()
        session.save().committed()
        training.step()
    assert steps_in(tmp_path) == [1, 4, 5]
    assert [event["step"] for event in events(tmp_path, "save_skipped")] == [2]


@pytest.fixture
def slow_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In overlap mode nothing is copied before the next step has had time to change it."""
    real = StagedContents.copy_unchanged

    def slow(contents: StagedContents, *arguments: Any) -> None:
        time.sleep(0.3)
        real(contents, *arguments)

    monkeypatch.setattr(StagedContents, "copy_unchanged", slow)


@pytest.mark.usefixtures("slow_copy")
@pytest.mark.parametrize("then", ["tick", "committed", "save", "leave", "fail"])
def test_a_copy_that_an_unguarded_step_has_changed_is_never_committed(
    tmp_path: Path, then: str
) -> None:
    training = Training(tmp_path, mode="overlap")
    with suppress(ZeroDivisionError, CommitAborted), training.session as session:
        training.step()
        save = session.save()
        if then == "tick":
            training.step(is_guarded=False)
            training.step()
        else:
            training.change()
        if then == "committed":
            with pytest.raises(CommitAborted, match="guard"):
                save.committed()
        if then == "save":
            session.save()
        if then == "fail":
            raise ZeroDivisionError
        with suppress(CommitAborted):
            save.committed()
        assert save.has_failed
    log = (tmp_path / ledger_key(1, 0)).read_text()
    assert "session.guard()" in log
    for checkpoint in Catalog(LocalStorage(tmp_path)).candidates():
        assert checkpoint != save.checkpoint


class HeldCopy:
    """In overlap mode nothing is copied before it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._is_let_go = threading.Event()
        self._is_over = threading.Event()
        real = StagedContents.copy_unchanged

        def held(contents: StagedContents, *arguments: Any) -> None:
            assert self._is_let_go.wait(60)
            try:
                real(contents, *arguments)
            finally:
                self._is_over.set()

        monkeypatch.setattr(StagedContents, "copy_unchanged", held)

    def let_go(self) -> None:
        """Return once it is copied."""
        self._is_let_go.set()
        assert self._is_over.wait(60)


def test_a_copy_that_ended_before_the_tick_of_an_unguarded_step_is_never_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, mode="overlap")
    with training.session as session:
        training.step()
        copy = HeldCopy(monkeypatch)
        save = session.save()
        for parameter in training.model.parameters():
            parameter.data += 1  # no version counter tells of it
        copy.let_go()
        session.tick()
        with pytest.raises(CommitAborted, match="guard"):
            save.committed()
    assert steps_in(tmp_path) == [2]


@pytest.mark.usefixtures("slow_copy")
def test_an_unguarded_step_that_no_version_tells_of_is_not_committed_by_what_follows(
    tmp_path: Path,
) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    with (
        suppress(ZeroDivisionError),
        keepstep.open(str(tmp_path), every="1000steps", mode="overlap") as session,
    ):
        session.track(model=model, optim=optimizer).restore()
        session.tick()
        save = session.save()
        model(torch.ones(4)).sum().backward()
        optimizer.step()
        raise ZeroDivisionError
    assert save.has_failed
    assert steps_in(tmp_path) == []
    optimizer.step()  # of which a session that is closed hears no more


def step_unguarded(rank: int, uri: str, then: str) -> str:
    """Save in overlap mode, and take a step that only rank 0's copy gets to see."""
    model = build("fsdp")
    optimizer = adamw(model)
    with pytest.MonkeyPatch.context() as patched, open_session(uri, mode="overlap") as session:
        session.track(model=model, optim=optimizer).restore()
        session.tick()
        copy = HeldCopy(patched)
        save = session.save()
        if rank != 0:
            copy.let_go()
        step(model, optimizer)
        copy.let_go()
        if then == "tick":
            session.tick()
        with pytest.raises(CommitAborted) as caught:
            save.committed()
        session.step = 0  # leave the block without another save
    return str(caught.value)


@pytest.mark.parametrize("then", ["tick", "committed"])
def test_an_unguarded_step_of_a_sharded_model_aborts_the_save_on_all_ranks(
    run_ranks: RunRanks, tmp_path: Path, then: str
) -> None:
    for message in run_ranks(2, step_unguarded, str(tmp_path), then):
        assert "the optimizer step was not inside `with session.guard():`" in message
    assert steps_in(tmp_path) == []


def wait_on_one_rank(rank: int, uri: str) -> str:
    """Rank 0 waits for a save, and rank 1, which has not vouched for it yet, for rank 0."""
    model = build("ddp")
    session = keepstep.open(uri, every="1000steps", mode="overlap", timeout_seconds=5)
    with session:
        session.track(model=model, optim=adamw(model)).restore()
        session.tick()
        save = session.save()
        if rank == 1:
            torch.distributed.barrier()
        with pytest.raises(CommitAborted) as caught:
            save.committed()
        if rank == 0:
            torch.distributed.barrier()
    return str(caught.value)


def test_a_rank_that_waits_alone_for_a_save_is_not_kept_waiting_forever(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    for message in run_ranks(2, wait_on_one_rank, str(tmp_path)):
        assert "rank 1 failed: another rank waits for step 1" in message
    assert steps_in(tmp_path) == [1], "leaving the session, all of them wait"


def test_without_a_thread_to_be_had_a_save_is_carried_through_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("keepstep-save"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    training = Training(tmp_path, mode="overlap")
    with training.session as session:
        training.step()
        assert session.save().is_over
        assert steps_in(tmp_path) == [1]


@pytest.mark.usefixtures("slow_copy")
def test_what_a_forward_pass_changes_is_copied_at_once(tmp_path: Path) -> None:
    class Codebook(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(3, 3)
            self.codes = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self) -> torch.Tensor:
            self.codes += 1
            self.seen += 1
            return self.inner(torch.ones(3)).sum()

    model = Codebook()
    optimizer = torch.optim.AdamW(model.inner.parameters())
    with open_session(str(tmp_path), mode="overlap") as session:
        session.track(model=model, optim=optimizer).restore()
        model().backward()
        session.tick()
        save = session.save()
        model().backward()
        with session.guard():
            optimizer.step()
        save.committed()
        session.step = 1
    again = Codebook()
    keepstep.load(tmp_path / save.checkpoint.prefix, model=again)
    assert again.codes.tolist() == [1.0] * 4
    assert again.seen.item() == 1


def test_tensors_whose_memory_is_not_their_value_are_refused_by_name(
    tmp_path: Path,
) -> None:
    class Part(torch.nn.Module):
        def __init__(self, tensor: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("odd", tensor)

    for tensor, kind in (
        (torch.eye(3).to_sparse(), "sparse_coo"),
        (torch.empty(3, device="meta"), "meta"),
        (TwoTensor(torch.ones(3), torch.ones(3)), "wrapper"),
        (torch.tensor([1 + 2j, 3 - 4j]).conj(), "conjugated"),
        (torch.ones(1, 4).expand(5, 4), "stride-0"),
    ):
        with (
            pytest.raises(ConfigError, match=f"part.odd is a {kind} tensor"),
            open_session(str(tmp_path / kind)) as session,
        ):
            session.track(part=Part(tensor)).restore()


def test_a_closed_session_takes_no_more_steps(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.session.close()
    training.session.close()
    with pytest.raises(ConfigError, match="closed"):
        training.session.tick()
    with pytest.raises(ConfigError, match="closed"):
        training.session.save()


@pytest.mark.parametrize("mode", ["sync", *BACKGROUND])
def test_a_save_that_is_over_is_freed_without_the_cyclic_collector(
    tmp_path: Path, mode: str
) -> None:
    training = Training(tmp_path, mode=mode)
    gc.disable()
    try:
        with training.session as session:
            training.step()
            save = session.save()
            participant = weakref.ref(save._participant)
            save.committed()
            assert save._participant._planner.state_dict == {}
            assert save._participant._entries == {}
            del save
            training.step()
            assert participant() is None
    finally:
        gc.enable()


def test_a_failed_save_is_noticed_at_the_next_step_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, every=2)
    with training.session as session:
        training.step()
        with monkeypatch.context() as broken:
            broken.setattr(FileWriter, "write", _fail)
            training.step()
            while session._generation.saves.is_busy:  # type: ignore[union-attr]
                pass
        training.step()
        (failed,) = events(tmp_path, "save_failed")
        assert failed["step"] == 2
        assert "out of order" in failed["error"]
        training.step()
    assert steps_in(tmp_path) == [4]


def test_a_save_tells_its_failure_to_whoever_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileWriter, "write", _fail)
    training = Training(tmp_path)
    training.step()
    save = training.session.save()
    with pytest.raises(CommitAborted, match="out of order"):
        save.committed()
    training.session.close()
    assert list((tmp_path / "steps").glob("*/*")) == [], "nothing is left of it"


@pytest.mark.parametrize("when_failing", ["stop", "continue", "pause"])
def test_the_last_save_is_tried_as_often_as_failures_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when_failing: str
) -> None:
    monkeypatch.setattr("keepstep.session.saves._PAUSE_SECONDS", 0)
    write, tries = FileWriter.write, []

    def fail_twice(writer: FileWriter, offset: int, data: Any) -> None:
        tries.append(writer)
        if len(set(map(id, tries))) <= 2:
            _fail()
        write(writer, offset, data)

    monkeypatch.setattr(FileWriter, "write", fail_twice)
    training = Training(tmp_path, failed_saves_allowed=2, when_failing=when_failing)
    with training.session:
        training.step()
    assert steps_in(tmp_path) == [1]
    assert len(events(tmp_path, "save_failed")) == 2


@pytest.mark.parametrize("when_failing", ["stop", "continue", "pause"])
def test_a_last_save_that_never_succeeds_ends_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when_failing: str
) -> None:
    monkeypatch.setattr("keepstep.session.saves._PAUSE_SECONDS", 0)
    monkeypatch.setattr(FileWriter, "write", _fail)
    training = Training(
        tmp_path, failed_saves_allowed=1, when_failing=when_failing, longest_pause_seconds=0.1
    )
    with pytest.raises(CommitAborted, match="out of order"), training.session:
        training.step()
    assert steps_in(tmp_path) == []


def _fail(*_: object) -> None:
    raise OSError(5, "out of order")


@pytest.mark.parametrize("mode", BACKGROUND)
def test_leaving_by_an_error_finishes_the_save_in_flight(
    tmp_path: Path, gate: Gate, mode: str
) -> None:
    training = Training(tmp_path, mode=mode)
    gate.close()
    with pytest.raises(ZeroDivisionError), training.session as session:
        training.step()
        session.save()
        threading.Timer(0.2, gate.open).start()
        raise ZeroDivisionError
    assert steps_in(tmp_path) == [1]


@pytest.mark.parametrize("mode", ["sync", *BACKGROUND])
def test_nothing_is_allocated_from_the_second_save_on(tmp_path: Path, mode: str) -> None:
    training = Training(tmp_path, mode=mode, every=1)
    with training.session:
        for _ in range(6):
            training.step()
    allocations = [event["allocations"] for event in events(tmp_path, "save")]
    assert len(allocations) == 6
    assert allocations[0] > 0
    if mode == "sync":  # as many slabs as threads happened to run at once
        assert allocations[-1] <= 4
    else:
        assert len(set(allocations)) == 1


@pytest.mark.parametrize("mode", ["sync", *BACKGROUND])
def test_threads_end_and_files_close_with_the_session(tmp_path: Path, mode: str) -> None:
    def resources() -> tuple[set[str], int]:
        threads = {thread.name for thread in threading.enumerate()}
        return threads, len(list(Path("/proc/self/fd").iterdir()))

    before = resources()
    training = Training(tmp_path, mode=mode, every=1)
    with training.session:
        for _ in range(3):
            training.step()
    assert resources() == before


FORGETFUL = """
import sys, torch, keepstep
model = torch.nn.Linear(4000, 4000)  # of more pieces than there are threads
session = keepstep.open(sys.argv[1], mode=sys.argv[2])
session.track(model=model)
session.restore()
session.tick()
session.save()
"""


@pytest.mark.parametrize("mode", BACKGROUND)
def test_an_interpreter_that_just_ends_ends_the_save_first(tmp_path: Path, mode: str) -> None:
    command = [sys.executable, "-c", FORGETFUL, str(tmp_path), mode]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert steps_in(tmp_path) == [1]


@pytest.mark.parametrize(
    ("option", "message"),
    [({"mode": "later"}, "choose one of sync, async, overlap"), ({"when_busy": "cry"}, "'skip'")],
)
def test_wrong_options_are_named(tmp_path: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        keepstep.open(str(tmp_path), **option)


def count_plan_traffic(rank: int, uri: str) -> list[int]:
    """Bytes of plans that this rank sent to the store, save by save."""
    sent = 0
    real = C10dStore.set

    def counting(store: C10dStore, key: str, value: bytes) -> None:
        nonlocal sent
        if "/plan" in key:
            sent += len(value)
        real(store, key, value)

    C10dStore.set = counting  # type: ignore[method-assign]
    model = build("fsdp")
    optimizer = adamw(model)
    traffic = []
    with open_session(uri) as session:
        session.track(model=model, optim=optimizer)
        session.restore()
        for number in range(5):
            if number == 3:  # from here on there is optimizer state
                step(model, optimizer)
            session.tick()
            session.save().committed()
            traffic.append(sent)
            sent = 0
    return traffic


def test_a_plan_is_kept_until_the_structure_changes(run_ranks: RunRanks, tmp_path: Path) -> None:
    for traffic in run_ranks(2, count_plan_traffic, str(tmp_path)):
        first, second, third, changed, last = traffic
        assert first > 2000
        assert second == third == last < 500
        assert changed > first
    assert len(steps_in(tmp_path)) == 5


def change_on_one_rank(rank: int, uri: str, change: str) -> list[str]:
    """Save three times; before the second one, something changes on rank 1 alone."""

    class Part:
        value = 0

        def state_dict(self) -> dict[str, int]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.value = state["value"]

    model = build("ddp")
    part = Part()
    outcomes = []
    with open_session(uri) as session:
        session.track(model=model, part=part).restore()
        for number in range(3):
            session.tick()
            if change == "value":
                part.value = number if number != 1 else rank
            try:
                session.save().committed()
                outcomes.append("committed")
            except CommitAborted as error:
                outcomes.append(str(error.args[0]))
        session.step = session.latest.step if session.latest else 0
    return outcomes


def test_a_value_that_comes_to_differ_under_a_kept_plan_is_named(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    for outcomes in run_ranks(2, change_on_one_rank, str(tmp_path), "value"):
        assert outcomes[0] == outcomes[2] == "committed"
        assert "state entry part differs between ranks 0 and 1" in outcomes[1]


def train_ddp(rank: int, uri: str, mode: str, resumes: bool) -> dict[str, Any]:
    model = build("ddp", seed=3)
    optimizer = adamw(model)
    with keepstep.open(uri, every=2, mode=mode, timeout_seconds=20) as session:
        session.track(model=model, optim=optimizer)
        assert session.restore().fresh != resumes
        while session.step < (8 if resumes else 5):
            loss = model(torch.full((6,), session.step))
            loss.backward()
            with session.guard():
                optimizer.step()
            optimizer.zero_grad()
            session.tick()
    return full_state(model=model, optim=optimizer)


@pytest.mark.parametrize("world_sizes", [(2, 2), (3, 2), (2, 4)])
def test_every_mode_resumes_to_the_same_bits(
    run_ranks: RunRanks, tmp_path: Path, world_sizes: tuple[int, int]
) -> None:
    states: dict[str, Any] = {}
    for mode in ("sync", *BACKGROUND):
        uri = str(tmp_path / mode)
        run_ranks(world_sizes[0], train_ddp, uri, mode, False)
        states[mode] = run_ranks(world_sizes[1], train_ddp, uri, mode, True)
        assert steps_in(tmp_path / mode) == [2, 4, 5, 6, 8]
    for mode in BACKGROUND:
        for mine, expected in zip(states[mode], states["sync"], strict=True):
            assert_equal(mine, expected)
