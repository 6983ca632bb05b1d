"""Patience with a metric, and a sense for losses that leap."""

import math

import pytest

from keepstep.errors import ConfigError
from keepstep.state.early_stopping import EarlyStopping
from keepstep.train.spikes import SpikeGuard


def test_patience_runs_out_after_so_many_values_that_are_no_better() -> None:
    early = EarlyStopping("loss:min", patience=2)
    seen = [early.observe(value, step=step) for step, value in enumerate([3, 2, 2.5, 1, 1, 1.5])]
    assert seen == [False, False, False, False, False, True]
    assert (early.best, early.best_step, early.is_over) == (1, 3, True)


def test_larger_may_be_better_and_nan_never_is() -> None:
    early = EarlyStopping("accuracy:max", patience=2, least=0.1)
    for step, value in enumerate([math.nan, 0.5, 0.55]):
        assert not early.observe(value, step=step)
    assert (early.best, early.best_step) == (0.5, 1)
    assert early.observe(math.nan, step=3)


def test_what_was_seen_survives_a_restart() -> None:
    early = EarlyStopping("loss:min", patience=2)
    for step, value in enumerate([1.0, 2.0]):
        early.observe(value, step=step)
    again = EarlyStopping("loss:min", patience=2)
    again.load_state_dict(early.state_dict())
    assert again.observe(1.5, step=2)
    assert again.best_step == 0


@pytest.mark.parametrize("text", ["loss", "loss:low", ":min", ""])
def test_a_metric_needs_a_name_and_a_goal(text: str) -> None:
    with pytest.raises(ConfigError, match="val_loss:min"):
        EarlyStopping(text, patience=1)


def test_a_leap_is_told_from_the_way_training_begins() -> None:
    guard = SpikeGuard(3.0)
    assert guard.explain(100.0) is None, "nothing is usual yet"
    for number in range(20):
        assert guard.explain(5.0 - number / 10) is None
    assert "is usual" in str(guard.explain(50.0))
    assert "nan" in str(guard.explain(math.nan))
    assert guard.explain(4.0) is None, "the leap itself is not usual now"
    other = SpikeGuard(3.0)
    other.load_state_dict(guard.state_dict())
    assert other.explain(50.0) == guard.explain(50.0)
