"""The error tree: what travels between ranks, and which code a process ends with."""

import inspect
import pickle

import pytest

from keepstep import errors
from keepstep.errors import (
    CommitAborted,
    CorruptCheckpointError,
    ExitCode,
    KeepstepError,
    exit_code_of,
)

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, KeepstepError)
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_with_its_fields(kind: type[KeepstepError]) -> None:
    original = kind("no space", step=100, generation=3, attempt="3f9c", rank=2, key="steps/x")
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is kind
    assert str(copy) == str(original)
    assert vars(copy) == vars(original)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_has_a_docstring_and_a_place_in_the_drawn_tree(
    kind: type[KeepstepError],
) -> None:
    assert kind.__doc__
    assert kind.__name__ in (errors.__doc__ or "")


def test_context_that_is_not_in_the_message_is_shown() -> None:
    assert str(KeepstepError("failed at step 7", step=7, rank=3)) == "failed at step 7 (rank 3)"


def test_failures_and_block_travel() -> None:
    aborted = pickle.loads(pickle.dumps(CommitAborted("rank 1 failed", failures={1: "ENOSPC"})))
    assert aborted.failures == {1: "ENOSPC"}
    assert pickle.loads(pickle.dumps(CorruptCheckpointError("bad", block=4))).block == 4


def test_errors_that_are_not_ours_are_unclassified() -> None:
    assert exit_code_of(ZeroDivisionError()) is ExitCode.ERROR


def test_builtin_bases_are_those_a_user_would_catch() -> None:
    assert issubclass(errors.ObjectNotFound, FileNotFoundError)
    assert issubclass(errors.ObjectExists, FileExistsError)
    assert issubclass(errors.StorageDenied, PermissionError)
    assert issubclass(errors.ConfigError, ValueError)
