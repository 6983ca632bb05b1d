"""Creations that failed and may happen all the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from keepstep.errors import ObjectExists, StorageError, StorageUnavailable


class Doubt:
    """What is known of one creation, over all of its attempts.

    A store may carry out a request long after the client has stopped waiting for the reply. From
    then on no later answer, however final, says that the object will not appear.

    Args:
        may_have_landed: Whether a request that failed so may still be carried out.
    """

    def __init__(self, may_have_landed: Callable[[Exception], bool]) -> None:
        self._may_have_landed = may_have_landed
        self._is_cast = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Around each attempt: raises what it raises."""
        try:
            yield
        except Exception as error:  # whatever a client raises
            self._is_cast = self._is_cast or self._may_have_landed(error)
            raise

    @contextmanager
    def told(self, key: str) -> Iterator[None]:
        """Around all attempts.

        *Raises:* ``StorageUnavailable`` in place of an error that would mean that nothing was
        created, if that is not certain.
        """
        try:
            yield
        except (ObjectExists, StorageUnavailable):
            raise
        except StorageError as error:
            if not self._is_cast:
                raise
            raise StorageUnavailable(
                f"{error}; an earlier try may still succeed", key=key
            ) from error
