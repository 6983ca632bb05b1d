"""Bugs that the simulation has found: each with the history that showed it, and with the code as it
was, which must still be caught."""

from typing import Any

import pytest
from mutants import Mutant, replaced

from keepstep.commit import protocol
from keepstep.commit.layout import CheckpointId
from keepstep.commit.protocol import Attempt
from keepstep.phases import Phase
from keepstep.session.choosing import Chooser
from keepstep.session.results import Skipped
from keepstep.testing.simulation.history import History
from keepstep.testing.simulation.naming import plan_of


def _set_aside_headless_at_first_sight(
    self: Chooser, *, above: CheckpointId | None
) -> list[Skipped]:
    headless = [
        Skipped(suspect, "its commit is on record")
        for suspect in self._unfinished(above)
        if self._was_committed(suspect)
    ]
    for skipped in headless:
        self._mark(skipped)
    return headless


def _set_aside_though_overtaken(self: Chooser, damaged: Skipped, **_: Any) -> None:
    self._mark(damaged)


def _plan_with_its_first_byte(self: Attempt) -> bytes:
    plan = self._exchange_plans(Phase.PLAN, is_whole=False)
    if plan == protocol._ASKED:
        return self._exchange_plans(protocol._WHOLE_PLAN, is_whole=True)
    return plan[1:]


RECORD = {
    "a whole plan that was asked for arrives with a byte too many": (
        replaced(Attempt, "_plan", _plan_with_its_first_byte),
        "17:events=",
    ),
    "what commits while a start reads the ledger is set aside as having lost its manifest": (
        replaced(Chooser, "set_aside_headless", _set_aside_headless_at_first_sight),
        "76:saves=8,schedule=7,events=rival@384#42095+roll-back@416#4321",
    ),
    "what a newer generation removes is set aside as damaged by a start that it has overtaken": (
        replaced(Chooser, "set_aside", _set_aside_though_overtaken),
        "630:saves=6,events=stop@276#27159+stop@304#103",
    ),
}


@pytest.mark.parametrize("bug", RECORD)
def test_it_is_still_caught(bug: str) -> None:
    as_it_was, name = RECORD[bug]
    assert Mutant(bug, (as_it_was,)).run(plan_of(name)) is not None


@pytest.mark.parametrize("bug", RECORD)
def test_it_is_mended(bug: str) -> None:
    assert History(plan_of(RECORD[bug][1])).run().violations == []
