"""A few threads over many tasks."""

import threading

import pytest

from keepstep.checkpoint.parallel import for_each


def test_every_task_is_done_once_and_the_threads_are_gone() -> None:
    before = threading.active_count()
    done: list[int] = []
    for_each(range(1000), done.append, num_threads=4)
    assert sorted(done) == list(range(1000))
    assert threading.active_count() == before


def test_the_earliest_error_is_raised_though_a_later_one_came_first() -> None:
    later_failed = threading.Event()

    def act(number: int) -> None:
        if number == 0:
            assert later_failed.wait(10)
            raise ValueError(number)
        later_failed.set()
        raise KeyError(number)

    with pytest.raises(ValueError, match="0"):
        for_each(range(100), act, num_threads=2)


def test_nothing_is_begun_after_an_error() -> None:
    begun: list[int] = []

    def act(number: int) -> None:
        begun.append(number)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        for_each(range(100), act, num_threads=4)
    assert len(begun) <= 4


def test_one_task_needs_no_thread() -> None:
    names: list[str] = []
    for_each([0], lambda _: names.append(threading.current_thread().name), num_threads=4)
    assert names == [threading.current_thread().name]
