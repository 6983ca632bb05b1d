"""The end of a history: nothing fails any more, and everything must be in order."""

from typing import TYPE_CHECKING

from keepstep.commit.catalog import Catalog
from keepstep.commit.layout import PRUNED, STEPS, CheckpointId, parse_pruned
from keepstep.testing.simulation import operators
from keepstep.testing.simulation.oracle import Oracle

if TYPE_CHECKING:
    from keepstep.testing.simulation.history import History


def recover(history: "History") -> None:
    """Start again, save, and tidy up; those who are stopped wake up before or after that."""
    history.calm_down()
    if history.choose(2):
        history.wake_all()
    _check_recovery(history)
    if history.has_stopped:
        history.wake_all()
        _check_recovery(history)
    _check_tidy(history)


def _check_recovery(history: "History") -> None:
    """The next start resumes, and its save commits."""
    oracle = history.oracle
    history.land_all()
    good = oracle.newest_good()
    history.new_store()
    job = history.begin_job(1)
    history.run_on()
    if good is None and oracle.damaged:
        return  # everything was damaged, and the start says so
    if job.generation == 0:
        history.violate(f"progress: nothing fails, and job {job.number} does not start")
    elif not job.committed:
        history.violate(f"progress: nothing fails, and job {job.number} does not commit")
    oracle.check_one_history()
    oracle.check_all_whole()
    oracle.check_source()
    oracle.check_pins()
    _check_catalog(history)


def _check_catalog(history: "History") -> None:
    """What is listed is what counts."""
    oracle = history.oracle
    found: list[CheckpointId] = []
    history.spawn("look", lambda: found.extend(Catalog(history.storage).candidates()))
    history.run_on()
    wanted = [id for id in reversed(oracle.counting()) if id not in oracle.damaged]
    if wanted and wanted[0] not in found:
        history.violate(f"I2: {wanted[0]} counts, and is not listed")
    if extra := [id for id in found if id not in wanted and id not in oracle.damaged]:
        history.violate(f"I2: {extra[0]} is listed, and does not count")


def _check_tidy(history: "History") -> None:
    """After a prune of everything that may go, nothing is left that no checkpoint refers to."""
    oracle = history.oracle
    before = oracle.counting()
    history.spawn("gc", lambda: operators.prune(history, 0))
    history.run_on()
    for rule in history.plan.keep.split(","):
        if rule.startswith("last="):
            kept = set(before[-int(rule.removeprefix("last=")) :])
            for id in sorted(kept - oracle.commits.keys() - oracle.damaged):
                history.violate(f"I7: {id} is removed in spite of {rule}")
    if not set(before) - oracle.damaged:
        return  # without a checkpoint that verifies nothing is removed
    source = oracle.claims[max(oracle.claims)]  # counts whatever marks there are
    for key in sorted(oracle.media.seen):
        name = key.removeprefix(STEPS).partition("/")[0]
        if key.startswith(PRUNED) and parse_pruned(key) != source:
            history.violate(f"tidy: {key} is left")
        elif key.startswith(STEPS) and not _may_stay(oracle, CheckpointId.parse(name)):
            history.violate(f"tidy: {key} is left, and no checkpoint refers to it")


def _may_stay(oracle: Oracle, id: CheckpointId | None) -> bool:
    """What counts or is kept for a reason; and what would count if it committed late."""
    return id is None or id in oracle.damaged or id in oracle.pinned or oracle.is_on_line(id)
