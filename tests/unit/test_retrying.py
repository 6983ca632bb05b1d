import random
import time

import pytest

from keepstep.errors import StorageUnavailable
from keepstep.observability.counters import COUNTERS
from keepstep.storage.retrying import RETRIES, Retrier, RetryPolicy


class Flaky:
    """Raises what it is given, one error per call, and then returns how often it was called."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return self.calls


def retrier(**limits: float) -> Retrier:
    policy = RetryPolicy(**{"longest_wait_seconds": 0.001} | limits)  # type: ignore[arg-type]
    return Retrier(
        policy,
        is_passing=lambda error: isinstance(error, OSError),
        cause=lambda error: type(error).__name__,
    )


def test_what_passes_is_tried_again_and_counted_by_cause() -> None:
    before = COUNTERS.by_labels(RETRIES)
    act = Flaky(TimeoutError(), ConnectionError(), TimeoutError())
    assert retrier().call("counted", act) == 4
    after = COUNTERS.by_labels(RETRIES)
    counted = {
        dict(labels)["cause"]: number - before.get(labels, 0)
        for labels, number in after.items()
        if dict(labels)["operation"] == "counted"
    }
    assert counted == {"TimeoutError": 2, "ConnectionError": 1}


def test_what_lasts_is_raised_at_once() -> None:
    act = Flaky(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        retrier().call("x", act)
    assert act.calls == 1


def test_a_lasting_error_after_a_passing_one_ends_it() -> None:
    act = Flaky(TimeoutError(), ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        retrier().call("x", act)
    assert act.calls == 2


def test_attempts_are_capped_and_the_last_error_is_raised() -> None:
    act = Flaky(*(StorageUnavailable(f"attempt {number}") for number in range(1, 9)))
    with pytest.raises(StorageUnavailable, match="attempt 5"):
        retrier(attempts=5).call("x", act)
    assert act.calls == 5


def test_time_is_capped() -> None:
    act = Flaky(*(TimeoutError() for _ in range(100_000)))
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        retrier(attempts=100_000, timeout_seconds=0.3).call("x", act)
    assert time.monotonic() - start < 30
    assert 1 < act.calls < 100_000


def test_an_interrupt_is_no_failure() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrier().call("x", interrupt)


def test_waiting_draws_nothing_from_the_generator_of_training() -> None:
    before = random.getstate()
    assert retrier().call("x", Flaky(TimeoutError(), TimeoutError())) == 3
    assert random.getstate() == before
