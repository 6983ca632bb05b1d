"""The loop's side: when it saves and stops, what a failed save does, and DCP's optimizer traps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models import adamw, assert_equal, build, full_state, open_session, step, without_statistics
from torch.distributed.fsdp import fully_shard

import keepstep
from keepstep import failpoints
from keepstep.commit.catalog import Catalog
from keepstep.errors import CommitAborted, ConfigError, FencedError, KeepstepError
from keepstep.observability.ledger import read_ledger
from keepstep.storage.local import LocalStorage
from rank_processes import RunRanks


def steps_in(uri: Path) -> list[int]:
    return [candidate.step for candidate in reversed(Catalog(LocalStorage(uri)).candidates())]


def run(
    rank: int, uri: str, steps: int, every: str | int, rules: str, options: dict[str, Any]
) -> Any:
    """Train; the step reached, or the error."""
    failpoints.arm(rules, rank=rank, restart_count=0)
    model = build("fsdp")
    optimizer = adamw(model)
    try:
        with keepstep.open(uri, every=every, timeout_seconds=20, **options) as session:
            session.track(model=model, optim=optimizer)
            session.restore()
            while session.step < steps:
                step(model, optimizer)
                if stop := session.tick(samples=2):
                    return stop
                if options.get("failed_saves_allowed") == 99 and rank == 1 and session.step == 3:
                    session.request_stop("enough")
            return session.step
    except KeepstepError as error:
        return error


def test_saves_come_every_so_many_steps_and_at_the_end(run_ranks: RunRanks, tmp_path: Path) -> None:
    assert run_ranks(2, run, str(tmp_path), 7, 3, "", {}) == [7, 7]
    assert steps_in(tmp_path) == [3, 6, 7]


def test_a_time_that_is_over_is_the_same_step_on_all_ranks(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    rules = "step.after=sleep:0.3@step:2@rank:1"
    assert run_ranks(2, run, str(tmp_path), 4, "0.2s", rules, {}) == [4, 4]
    *by_time, last = steps_in(tmp_path)
    assert last == 4
    assert by_time, "a commit that was due by time, before the last step"


def test_one_rank_that_wants_to_stop_stops_all_after_a_commit(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    stops = run_ranks(2, run, str(tmp_path), 9, 100, "", {"failed_saves_allowed": 99})
    assert stops == [keepstep.Stop("enough", 4)] * 2
    assert steps_in(tmp_path) == [4]


def test_a_stop_whose_save_fails_is_tried_again_on_the_way_out(
    run_ranks: RunRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keepstep.session.saves._PAUSE_SECONDS", 0.01)
    rules, options = "write.middle=raise:ENOSPC@rank:1@step:4", {"failed_saves_allowed": 99}
    stops = run_ranks(2, run, str(tmp_path), 9, 100, rules, options)
    assert stops == [keepstep.Stop("enough", 4, is_committed=False)] * 2
    assert steps_in(tmp_path) == [4]


@pytest.mark.parametrize("site", ["stage.before", "write.middle", "write.after", "arrive.before"])
def test_a_full_disk_on_one_rank_costs_one_save_and_training_goes_on(
    run_ranks: RunRanks, tmp_path: Path, site: str
) -> None:
    rules = f"{site}=raise:ENOSPC@rank:1@step:4"
    assert run_ranks(2, run, str(tmp_path), 6, 2, rules, {}) == [6, 6]
    assert steps_in(tmp_path) == [2, 6]
    assert len(list((tmp_path / "steps").iterdir())) == 2, "nothing is left of the aborted attempt"
    events = read_ledger(ledger(tmp_path))
    (failed,) = (event for event in events if event["event"] == "save_failed")
    assert "rank 1 failed" in failed["error"]
    assert "No space left" in failed["error"]


def test_training_stops_when_too_many_saves_in_a_row_have_failed(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    rules = ";".join(f"write.middle=raise:EIO@rank:1@step:{number}" for number in range(2, 9))
    errors = run_ranks(2, run, str(tmp_path), 9, 1, rules, {"failed_saves_allowed": 2})
    assert [type(error) for error in errors] == [CommitAborted] * 2
    assert "rank 1 failed" in str(errors[0])
    assert errors[0].step == 4, "two failures are allowed, the third is one too many"
    assert steps_in(tmp_path) == [1]


@pytest.mark.parametrize("mode", ["sync", "async", "overlap"])
def test_a_run_that_was_taken_over_stops_and_says_so(tmp_path: Path, mode: str) -> None:
    model = build("none")
    optimizer = adamw(model)
    fenced = pytest.raises(FencedError, match="generation 2 has taken over")
    with fenced as caught, open_session(str(tmp_path), mode=mode) as session:
        session.track(model=model, optim=optimizer)
        session.restore()
        with open_session(str(tmp_path)) as successor:
            other = build("none")
            successor.track(model=other, optim=adamw(other))
            successor.restore()
        step(model, optimizer)
        session.tick()
        session.save().committed()
    assert caught.value.exit_code == 87
    assert steps_in(tmp_path) == []


def test_an_object_that_differs_between_ranks_is_named_at_the_first_save(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    for error in run_ranks(2, save_divergent, str(tmp_path)):
        assert "state entry loader differs between ranks 0 and 1" in error


def test_an_error_in_state_dict_on_one_rank_aborts_the_save_on_all(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    for outcome in run_ranks(2, fail_once_in_state_dict, str(tmp_path)):
        assert outcome == [2, 3]


def fail_once_in_state_dict(rank: int, uri: str) -> list[int]:
    class Part:
        fails = False

        def state_dict(self) -> dict[str, int]:
            if self.fails and rank == 1:
                raise RuntimeError("not now")
            return {}

        def load_state_dict(self, state: dict[str, int]) -> None:
            raise AssertionError

    part, committed = Part(), []
    with keepstep.open(uri, every=1, mode="sync", timeout_seconds=20) as session:
        session.track(part=part)
        session.restore()
        for number in range(1, 4):
            part.fails = number == 1
            session.tick()
            if session.latest is not None:
                committed.append(session.latest.step)
    return committed


def test_metrics_may_have_any_name(tmp_path: Path) -> None:
    with keepstep.open(str(tmp_path), every=1) as session:
        session.track(model=torch.nn.Linear(1, 1))
        session.restore()
        session.tick(step=7.0, time=0.3, rank=5.0, event=1.0, nan=float("nan"))
        with pytest.raises(KeepstepError, match="choose another name"):
            session.record("step", phase="warmup")
    (event,) = (e for e in read_ledger(ledger(tmp_path)) if e["event"] == "step")
    assert (event["step"], event["rank"]) == (1, 0)
    assert event["time"] > 1e9
    assert event["metrics"] == {"step": 7, "time": 0.3, "rank": 5, "event": 1, "nan": "nan"}


def ledger(uri: Path) -> bytes:
    return (uri / "ledger/g000001/rank-00000.jsonl").read_bytes()


def save_divergent(rank: int, uri: str) -> str:
    class Loader:
        def state_dict(self) -> dict[str, int]:
            return {"position": rank}

        def load_state_dict(self, state: dict[str, int]) -> None:
            raise AssertionError

    with (
        pytest.raises(KeepstepError) as caught,
        open_session(uri, failed_saves_allowed=0) as session,
    ):
        session.track(loader=Loader())
        session.restore()
        session.tick()
    return str(caught.value)


@pytest.mark.parametrize("state", [{"f": lambda: 0}, {"f": Path("x")}], ids=["lambda", "Path"])
def test_state_that_could_execute_code_is_refused_when_it_is_saved(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    class Part:
        def state_dict(self) -> dict[str, Any]:
            return state

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise AssertionError

    with pytest.raises(KeepstepError, match="part"), open_session(str(tmp_path)) as session:
        session.track(part=Part())
        session.restore()
        session.tick()


class TestOptimizerTraps:
    """What torch's own state-dict helpers get wrong must not come through."""

    def test_a_save_before_the_first_step_takes_no_step(self, tmp_path: Path) -> None:
        def two_steps(uri: Path, *, saves: bool) -> dict[str, Any]:
            model = build("none")
            optimizer = adamw(model)
            torch.manual_seed(1)
            with open_session(str(uri)) as session:
                session.track(model=model, optim=optimizer)
                session.restore()
                if saves:
                    session.save()
                for _ in range(2):
                    step(model, optimizer)
            return full_state(model=model, optim=optimizer)

        assert_equal(two_steps(tmp_path / "a", saves=True), two_steps(tmp_path / "b", saves=False))

    def test_a_leftover_gradient_loses_nothing(self, tmp_path: Path) -> None:
        def resume() -> dict[str, Any]:
            model = build("none", seed=3)
            optimizer = adamw(model)
            model(torch.randint(0, 37, (6,))).backward()
            with open_session(str(tmp_path)) as session:
                session.track(model=model, optim=optimizer)
                session.restore()
            return full_state(model=model, optim=optimizer)

        model = build("none")
        optimizer = adamw(model)
        with open_session(str(tmp_path)) as session:
            session.track(model=model, optim=optimizer)
            session.restore()
            step(model, optimizer)
            session.tick()
        saved = full_state(model=model, optim=optimizer)
        assert ".optim.state.first.weight.exp_avg" in saved
        assert_equal(saved, resume())

    def test_a_parameter_that_never_got_a_gradient_has_no_state_before_and_after(
        self, tmp_path: Path
    ) -> None:
        for _ in range(2):
            model = build("none")
            optimizer = adamw(model)
            with open_session(str(tmp_path)) as session:
                session.track(model=model, optim=optimizer)
                session.restore()
                if session.step < 1:
                    step(model, optimizer)
                    session.tick()
            assert not any(".never." in name for name in full_state(model=model, optim=optimizer))
            assert model.never not in optimizer.state

    def test_options_and_their_types_come_back(self, tmp_path: Path) -> None:
        model = build("none")
        optimizer = adamw(model)
        with open_session(str(tmp_path)) as session:
            session.track(model=model, optim=optimizer)
            session.restore()
            optimizer.param_groups[0]["lr"] = 0.5
            step(model, optimizer)
            session.tick()
        model = build("none")
        optimizer = adamw(model)
        with open_session(str(tmp_path)) as session:
            session.track(model=model, optim=optimizer)
            session.restore()
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert optimizer.param_groups[1]["betas"] == (0.8, 0.95)
        assert optimizer.param_groups[0]["note"] == "matrices"

    def test_an_optimizer_of_untracked_parameters_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(KeepstepError, match="not tracked"), open_session(str(tmp_path)) as s:
            s.track(optim=adamw(build("none")))
            s.restore()
            s.tick()


def save_after_evaluation(rank: int, uri: str, strategy: Any) -> dict[str, Any]:
    model = build(strategy)
    optimizer = adamw(model)
    with open_session(uri) as session:
        session.track(model=model, optim=optimizer)
        session.restore()
        torch.manual_seed(rank)
        step(model, optimizer)
        with torch.no_grad():
            model(torch.randint(0, 37, (6,)))
        session.tick()
        session.save()
    return full_state(model=model, optim=optimizer)


def test_an_evaluation_before_a_save_leaves_no_unsharded_parameters_in_it(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    """After a forward without backward an FSDP root keeps what it gathered."""
    saved = run_ranks(2, save_after_evaluation, str(tmp_path), "fsdp")[0]
    model = build("none", seed=4)
    optimizer = adamw(model)
    with open_session(str(tmp_path)) as session:
        session.track(model=model, optim=optimizer)
        assert session.restore().step == 1
    loaded = full_state(model=model, optim=optimizer)
    assert_equal(without_statistics(saved), without_statistics(loaded))


def tick_with_a_norm(rank: int, uri: str) -> None:
    """A step whose metric is a DTensor, of which each rank holds a part."""
    torch.manual_seed(0)
    model = fully_shard(torch.nn.Linear(8, 8, bias=False))
    with keepstep.open(uri, every=1, mode="sync", timeout_seconds=20) as session:
        session.track(model=model).restore()
        session.tick(norm=model.weight.norm().detach(), rank=rank)


def test_a_metric_in_parts_is_recorded_whole(run_ranks: RunRanks, tmp_path: Path) -> None:
    run_ranks(2, tick_with_a_norm, str(tmp_path))
    torch.manual_seed(0)
    norm = torch.nn.Linear(8, 8, bias=False).weight.norm().item()
    catalog = Catalog(LocalStorage(tmp_path))
    (candidate,) = catalog.candidates()
    assert catalog.manifest(candidate).metrics == {"norm": pytest.approx(norm), "rank": 0}
    (event,) = (e for e in read_ledger(ledger(tmp_path)) if e["event"] == "step")
    assert event["metrics"]["norm"] == pytest.approx(norm)


def save_apart(rank: int, uri: str, is_wrapped: bool) -> str | None:
    """One step of a model that every rank builds for itself; the error."""
    torch.manual_seed(rank)
    model: torch.nn.Module = torch.nn.Linear(8, 8)
    if is_wrapped:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = adamw(model)
    try:
        with keepstep.open(uri, every=1, timeout_seconds=20) as session:
            session.track(model=model, optim=optimizer).restore()
            model(torch.rand(4, 8)).sum().backward()
            optimizer.step()
            session.tick()
    except KeepstepError as error:
        return f"{error.exit_code:d} {error}"
    return None


def test_replicas_that_differ_are_refused_before_anything_is_saved(
    run_ranks: RunRanks, tmp_path: Path
) -> None:
    errors = run_ranks(2, save_apart, str(tmp_path / "apart"), False)
    assert len(set(errors)) == 1
    assert errors[0].startswith("78 state entry model.weight differs between ranks 0 and 1")
    assert steps_in(tmp_path / "apart") == []
    assert run_ranks(2, save_apart, str(tmp_path / "alike"), True) == [None, None]
    assert steps_in(tmp_path / "alike") == [1]


@pytest.mark.parametrize("name", ["mathematics", "parallel"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), Path("x"), {"dp": {2}}])
def test_settings_that_no_manifest_can_hold_are_refused_at_once(
    tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=rf"{name} has max_norm="):
        open_session(str(tmp_path / "run"), **{name: {"lr": 0.1, "max_norm": value}})
    with pytest.raises(ConfigError, match=rf"{name} has the key 3"):
        open_session(str(tmp_path / "run"), **{name: {3: 0.1, "lr": 1}})
    assert not (tmp_path / "run").exists()
