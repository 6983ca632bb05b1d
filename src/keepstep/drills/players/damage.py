"""Damage to the files of a run between two jobs."""

from keepstep.drills.inject import fingerprints, spoil
from keepstep.drills.scenario import Spoil
from keepstep.drills.stage import Stage


def play_spoil(stage: Stage, act: Spoil) -> None:
    """Damage files, and take down how everything is then."""
    for damage in spoil(stage.storage, act, seed=stage.seed):
        stage.damages.append(damage)
        stage.note("damage", damage.key, str(damage))
    stage.objects_before = fingerprints(stage.storage)
