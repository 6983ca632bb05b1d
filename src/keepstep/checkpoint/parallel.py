"""A few threads over many tasks."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def for_each(tasks: Sequence[T], act: Callable[[T], None], *, num_threads: int) -> None:
    """Act on every task, begun in order, by several threads; they are gone afterwards.

    After an error no further task is begun, and the error of the earliest task is raised, so that
    it does not depend on the threads' luck.
    """
    waiting = deque(enumerate(tasks))
    errors: dict[int, BaseException] = {}

    def work() -> None:
        while waiting and not errors:
            try:
                number, task = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                act(task)
            except BaseException as error:  # noqa: BLE001  # raised again below
                errors[number] = error

    helpers = min(num_threads, len(tasks)) - 1
    if helpers > 0:
        with ThreadPoolExecutor(helpers, thread_name_prefix="keepstep") as pool:
            with suppress(RuntimeError):  # the interpreter is ending: then this thread does it all
                for _ in range(helpers):
                    pool.submit(work)
            work()
    else:
        work()
    if errors:
        raise errors[min(errors)]
