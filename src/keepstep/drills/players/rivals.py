"""Two jobs on the directory of one run."""

from contextlib import ExitStack
from dataclasses import replace

from keepstep.drills.rivals import AtOnce, Rivals
from keepstep.drills.scenario import Ending
from keepstep.drills.stage import Stage


def play_rivals(stage: Stage, act: Rivals) -> None:
    """Start both, each to where it stops; let both go on to their ends."""
    with ExitStack() as jobs:
        older = jobs.enter_context(stage.start(act.older))
        older.freeze()
        newer = jobs.enter_context(stage.start(act.newer))
        newer.freeze()
        stage.note("continue", "both jobs")
        older.thaw()
        newer.thaw()
        stage.results.append(older.wait(Ending.FENCED))
        stage.results.append(newer.wait(Ending.COMPLETE))


def play_at_once(stage: Stage, act: AtOnce) -> None:
    """Start both. Which of them wins is left to chance."""
    with ExitStack() as jobs:
        both = [jobs.enter_context(stage.start(act.leg)) for _ in range(2)]
        ended = [job.wait(Ending.COMPLETE) for job in both]
    losers = [result for result in ended if result.code != 0] or ended[:1]
    stage.results += [
        replace(result, ending=Ending.FENCED if result is losers[0] else Ending.COMPLETE)
        for result in ended
    ]
