"""A soak under way: sorties against one run, until enough has gone wrong; then it is let finish."""

import time
from dataclasses import dataclass
from signal import SIGKILL, SIGTERM
from typing import ClassVar

from keepstep.commit.catalog import Catalog
from keepstep.drills.inject import send, spoil
from keepstep.drills.processes import until
from keepstep.drills.remains import read_remains
from keepstep.drills.run import Job, keepstep_run
from keepstep.drills.scenario import Act, DamageKind, Leg, Place, Spoil
from keepstep.drills.soak.cleaning import clean_up, left_over
from keepstep.drills.soak.network import Network, open_network
from keepstep.drills.soak.schedule import (
    QUIET_NETWORK,
    WORLD_SIZE,
    Fault,
    Round,
    Sortie,
    rules,
    sorties,
)
from keepstep.drills.soak.stock import read_by_stock
from keepstep.drills.stage import Stage, is_deed
from keepstep.errors import BarrierTimeout

SAVE_EVERY = 10
_MARK_SECONDS = 300.0  # rounds that end by themselves may come first
_END_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Campaign(Act):
    """Faults until there were so many, or so much time has passed."""

    player: ClassVar[str] = "keepstep.drills.soak.campaign:play_campaign"

    faults: int
    minutes: float


def play_campaign(stage: Stage, act: Campaign) -> None:
    """Sortie by sortie; then the job is started once more and comes to its end.

    Notes ``steps``: how many the reference needs.
    """
    deadline = time.monotonic() + 60 * act.minutes
    with open_network(stage.storage.uri) as network:
        stage.environ |= network.environ
        runs = sorties(stage.seed, has_proxy=network.is_open)
        while len(stage.injections) < act.faults and time.monotonic() < deadline:
            _Sortie(stage, network, next(runs)).play()
        network.calm()
        _finish(stage)


class _Sortie:
    """One launcher under its rounds."""

    def __init__(self, stage: Stage, network: Network, sortie: Sortie) -> None:
        self._stage = stage
        self._network = network
        self._sortie = sortie

    def play(self) -> None:
        leg = Leg(WORLD_SIZE, rules(self._sortie))
        number = len(self._stage.notes.setdefault("launches", [])) + 1
        logs = self._stage.directory / f"logs-{number}"
        with self._stage.start(leg, command=keepstep_run(leg, logs)) as job:
            began = time.monotonic()
            for restart, each in enumerate(self._sortie):
                self._play_round(job, restart, each)
            code, orphans = self._end(job)
        self._stage.collect()
        end = self._sortie[-1].end
        self._stage.notes["launches"].append(
            {
                "end": end.kind,
                "code": code,
                "orphans": orphans,
                "seconds": round(time.monotonic() - began, 1),
                "log": job.log.name,
            }
        )
        if end.kind == "damage":
            self._damage(number)

    def _play_round(self, job: Job, restart: int, each: Round) -> None:
        """What comes from outside; the rest happens by itself."""
        outside = [fault for fault in each.quiet if fault.kind in QUIET_NETWORK]
        if each.end.site and not outside:
            return
        if not self._await_training(job, restart):
            return
        for fault in outside:
            self._network.inject(fault)
            self._stage.note(fault.kind, "store", "of the next requests")
        if not each.end.site:
            time.sleep(each.end.delay_seconds)
            self._strike(job, each.end)

    def _strike(self, job: Job, end: Fault) -> None:
        if end.kind == "kill-any":
            ranks = job.ranks()
            if ranks:
                self._stage.note("kill", f"rank {end.rank}", "at any moment")
                send(SIGKILL, [ranks[end.rank % len(ranks)]])
            return
        is_told = end.kind == "preempt"
        self._stage.note("preempt" if is_told else "kill-agent", "launcher")
        send(SIGTERM if is_told else SIGKILL, [job.pid])

    def _await_training(self, job: Job, restart: int) -> bool:
        """Whether this incarnation trains; not, if it died of something earlier."""

        def is_due() -> bool:
            return job.code is not None or any(
                fired["restart"] >= restart
                for fired in self._stage.fired(job)
                if not is_deed(fired)
            )

        if not until(is_due, _MARK_SECONDS):
            raise BarrierTimeout(f"incarnation {restart} has not begun to train; see {job.log}")
        return job.code is None

    def _end(self, job: Job) -> tuple[int, int]:
        """What the launcher ended with, and how many processes outlive it for long.

        *Raises:* ``BarrierTimeout`` if the launcher outlives what ends it.
        """
        if not until(lambda: job.code is not None, _END_SECONDS):
            raise BarrierTimeout(f"the job outlived {self._sortie[-1].end.kind}; see {job.log}")
        until(lambda: not job.pids(), _END_SECONDS)
        return job.code or 0, len(job.pids())

    def _damage(self, number: int) -> None:
        """The newest checkpoint, while nobody uses it."""
        stage = self._stage
        if len(Catalog(stage.storage).candidates()) < 2:
            return
        kinds, places = tuple(DamageKind), (Place.SHARD, Place.INDEX, Place.MANIFEST)
        act = Spoil(kinds[number % len(kinds)], (places[number % len(places)],))
        for damage in spoil(stage.storage, act, seed=f"{stage.chance}/{number}"):
            stage.damages.append(damage)
            stage.note("damage", damage.key, str(damage))


def _finish(stage: Stage) -> None:
    """Once more, undisturbed, to the second save from now; then whatever is left over goes."""
    newest = max((id.step for id in Catalog(stage.storage).candidates()), default=0)
    steps = (newest // SAVE_EVERY + 2) * SAVE_EVERY
    stage.settings = {**stage.settings, "train.steps": steps}
    with stage.start(Leg(WORLD_SIZE)) as job:
        stage.results.append(job.wait(Leg(WORLD_SIZE).ending))
    stage.collect()
    stage.notes["steps"] = steps
    stage.remains = read_remains(stage.storage)
    stage.notes["stock"] = read_by_stock(stage.storage, stage.directory)
    stage.notes["kept"] = clean_up(stage.storage)
    stage.notes["left_over"] = left_over(stage.storage)
