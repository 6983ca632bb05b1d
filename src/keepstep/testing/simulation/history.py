"""One history: jobs come and go, things happen to them, and the oracle watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from keepstep.commit.layout import MANIFEST, RUN_KEY
from keepstep.testing.simulation import operators
from keepstep.testing.simulation.actors import Actor, Killed, Process, Scheduler
from keepstep.testing.simulation.clock import Clock
from keepstep.testing.simulation.job import Job
from keepstep.testing.simulation.media import Media
from keepstep.testing.simulation.oracle import Oracle
from keepstep.testing.simulation.plan import Event, Kind, Plan
from keepstep.testing.simulation.recovery import recover
from keepstep.testing.simulation.sites import Site, object_of
from keepstep.testing.simulation.storage import Reply, SimulatedStorage
from keepstep.testing.simulation.store import SimulatedStore
from keepstep.testing.simulation.substitutes import substituted
from keepstep.testing.simulation.threads import Threads

_NEVER = 1 << 60
_MOST_OPERATIONS = 40_000
_STORAGE_OPERATIONS = frozenset(
    (
        *("put", "create", "open", "write", "sync", "complete", "append"),
        *("get", "open to read", "read", "list", "delete"),
    )
)
_WRITES = frozenset(("put", "create", "open", "write", "append"))
_REPLIES = {
    Kind.FAIL: (Reply.FAILED, _STORAGE_OPERATIONS),
    Kind.FULL: (Reply.FULL, _WRITES),
    Kind.LOSE_REPLY: (Reply.LOST, frozenset(("put", "create", "complete", "delete"))),
    Kind.REPEAT: (Reply.REPEATED, frozenset(("create",))),
    Kind.DELAY: (Reply.LATE, frozenset(("create", "complete"))),
    Kind.GARBLE: (Reply.GARBLED, frozenset(("read",))),
}
_OPERATORS: dict[Kind, Callable[["History", int], None]] = {
    Kind.PRUNE: operators.prune,
    Kind.ROLL_BACK: operators.go_back,
    Kind.PIN: operators.put_pin,
    Kind.UNPIN: operators.take_pin,
    Kind.READ: operators.read,
}


@dataclass
class Outcome:
    """What came of a history."""

    plan: Plan
    violations: list[str]
    saves: int
    operations: int
    happened: dict[Kind, int]
    crashed: set[Site]
    """Where a process was killed, stopped, or lost its power."""
    visited: dict[Site, int]
    """Every place there was, with an operation at which it was passed."""
    trace: list[str] = field(default_factory=list)


class History:
    """Carries out a plan. It is the fate of its stores.

    Args:
        is_traced: Whether to write down every operation.
        make_job: What a job is; a mutant brings its own.
        make_storage: What a store is; a mutant brings its own.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        is_traced: bool = False,
        make_job: type[Job] = Job,
        make_storage: type[SimulatedStorage] = SimulatedStorage,
    ) -> None:
        self.plan = plan
        self.clock = Clock()
        self.scheduler = Scheduler(
            self.clock, Random(f"schedule {plan.seed} {plan.schedule}"), self._judge_end
        )
        self._random = Random(f"choices {plan.seed} {plan.schedule}")
        self.oracle = Oracle(self.violate)
        self.media = self.oracle.media = Media(self.oracle.observe)
        self.storage = make_storage(
            self.media,
            self,
            is_disk=plan.is_disk,
            order=self._shuffled if plan.is_reordered else None,
        )
        self.store = SimulatedStore(self.scheduler, self)
        self.saves = 0
        self.outcome = Outcome(plan, [], 0, 0, {}, set(), {})
        self._visited = self.outcome.visited
        self._make_job = make_job
        self._jobs: list[Job] = []
        self._processes: list[Process] = []
        self._stopped: list[Process] = []
        self._events = list(plan.events)
        self._late: list[tuple[int, Callable[[], None]]] = []
        self._outage_ends = 0
        self._prunes = 0
        self._is_traced = is_traced
        self._operations = 0
        self._next_switch = 0
        self._next_event = self._events[0].at if self._events else _NEVER

    def run(self) -> Outcome:
        """Everything that the plan says, then a recovery in peace, and the verdict."""
        with substituted(self.clock, Threads(self.scheduler), Random(f"names {self.plan.seed}")):
            try:
                self._run()
            finally:
                self._end_all()
        outcome = self.outcome
        outcome.saves, outcome.operations = self.saves, self._operations
        return outcome

    def _run(self) -> None:
        self.media.set(RUN_KEY, b"", is_durable=True)
        self.spawn("launcher", self._launch)
        self.run_on()
        if not self.outcome.violations:
            recover(self)

    def _launch(self) -> None:
        """Start jobs until all saves were tried, as a launcher does that allows every restart."""
        restarts = 0
        while self.saves < self.plan.saves and restarts < 2 * self.plan.saves:
            restarts += 1
            job = self.begin_job(self.plan.saves - self.saves)
            while not (job.is_over or job.is_broken):
                self.scheduler.wait(job, None)
            if not job.is_over:
                self.scheduler.wait("a while", (0.01, 1.0, 6.0, 60.0)[self.choose(4)])
                if self.choose(3):
                    job.kill()
            if self.choose(2):
                self.store = SimulatedStore(self.scheduler, self)

    def begin_job(self, saves: int) -> Job:
        """One more start."""
        job = self._make_job(
            self, len(self._jobs) + 1, world_size=self.plan.world_size, saves=saves
        )
        self._jobs.append(job)
        self._processes += job.processes
        job.begin()
        return job

    def new_store(self) -> None:
        """Jobs that start from now on meet elsewhere."""
        self.store = SimulatedStore(self.scheduler, self)

    def choose(self, count: int) -> int:
        """One of so many."""
        return int(self._random.random() * count)

    def violate(self, text: str) -> None:
        """Write down what must not be."""
        self.outcome.violations.append(text)
        if self._is_traced:
            self._note(f"VIOLATION {text}")

    @contextmanager
    def pruning(self) -> Iterator[None]:
        """Meanwhile nothing is damaged: a prune believes what it has just read."""
        self._prunes += 1
        try:
            yield
        finally:
            self._prunes -= 1

    def pass_by(self, operation: str, key: str, moment: str = "") -> Reply | None:
        actor = self.scheduler.current
        assert actor is not None
        if actor.process.is_dead:
            raise Killed
        self._operations = count = self._operations + 1
        place = (actor.process.role, actor.activity, operation, object_of(key), moment)
        self._visited[place] = count
        if self._is_traced:
            self._note(f"{operation} {key} {moment}")
        reply = None
        if count >= self._next_event:
            reply = self._befall(actor, operation, place, moment)
        if count >= self._next_switch:
            mean = self.plan.operations_per_switch
            self._next_switch = count + 1 + int(self._random.expovariate(1 / mean))
            if len(self.scheduler.ready) > 1:
                self.scheduler.switch()
            if count > _MOST_OPERATIONS:
                self.violate("progress: a history without an end")
                self._kill_all()
        if actor.process.is_dead:
            raise Killed
        return reply

    def land_later(self, act: Callable[[], None]) -> None:
        self._late.append((self._operations + self.choose(150), act))
        self._look_ahead()

    def kill(self, process: Process) -> None:
        """End a process where it is."""
        self.scheduler.kill(process)
        if process in self._stopped:
            self._stopped.remove(process)

    def _befall(self, actor: Actor, operation: str, site: Site, moment: str) -> Reply | None:
        """What is due at this operation."""
        count = self._operations
        for process in [process for process in self._stopped if process.wakes_at <= count]:
            self._wake(process)
        self._land([act for at, act in self._late if at <= count])
        reply = None
        if count < self._outage_ends and operation in _STORAGE_OPERATIONS and not moment:
            reply = Reply.FAILED
        for event in [event for event in self._events if event.at <= count]:
            if event.kind in _REPLIES:
                kind_of_reply, operations = _REPLIES[event.kind]
                if reply is not None or operation not in operations or moment:
                    continue
                reply = kind_of_reply
            if event not in self._events:
                continue  # it has happened to another while this one waited
            self._events.remove(event)
            if event.kind not in _REPLIES and not self._happens(event, actor, site):
                self._events.append(event)
                continue
            self.outcome.happened[event.kind] = self.outcome.happened.get(event.kind, 0) + 1
            if self._is_traced:
                self._note(f"*** {event}")
        self._look_ahead()
        return reply

    def _look_ahead(self) -> None:
        """When to look again. An event that could not happen yet has another chance at once."""
        times = [event.at for event in self._events]
        times += [int(process.wakes_at) for process in self._stopped]
        times += [at for at, _ in self._late]
        if self._operations < self._outage_ends:
            times.append(self._operations + 1)
        self._next_event = min(times, default=_NEVER)

    def _happens(self, event: Event, actor: Actor, site: Site) -> bool:
        """Let it happen, if it can here."""
        process, kind = actor.process, event.kind
        of_job = process.job.processes if isinstance(process.job, Job) else [process]
        if kind is Kind.KILL or kind is Kind.KILL_JOB:
            self._crash(site, [process] if kind is Kind.KILL else of_job)
        elif kind is Kind.STOP or kind is Kind.STOP_JOB:
            self.outcome.crashed.add(site)
            for one in [process] if kind is Kind.STOP else of_job:
                self._stop(one, event.number)
            self.scheduler.switch()
        elif kind is Kind.CUT_POWER:
            self.outcome.crashed.add(site)
            self._cut_power(event.number)
        elif kind is Kind.OUTAGE:
            self._outage_ends = self._operations + 2 + event.number % 40
        elif kind is Kind.STALL:
            self.scheduler.wait("stall", (0.5, 3.0, 10.0, 400.0)[event.number % 4])
        elif kind is Kind.LOSE_STORE:
            self.store.is_gone = True
            self.store = SimulatedStore(self.scheduler, self)
        elif kind is Kind.DAMAGE:
            return self._damage(event.number)
        elif kind is Kind.RIVAL:
            self.begin_job(1 + event.number % 3)
        else:
            act = _OPERATORS[kind]
            self.spawn(str(kind), lambda: act(self, event.number))
        return True

    def _crash(self, site: Site, processes: list[Process]) -> None:
        self.outcome.crashed.add(site)
        for process in processes:
            self.kill(process)
        self._announce_broken(processes)

    def _stop(self, process: Process, number: int) -> None:
        if process.is_dead or process.is_stopped:
            return
        process.is_stopped = True
        process.wakes_at = self._operations + (number % 700 if number % 4 else _NEVER)
        self._stopped.append(process)
        self._announce_broken([process])

    def _wake(self, process: Process) -> None:
        process.is_stopped = False
        self._stopped.remove(process)

    def _announce_broken(self, processes: list[Process]) -> None:
        for process in processes:
            if isinstance(process.job, Job):
                process.job.is_broken = True
                self.scheduler.notify(process.job)

    def _cut_power(self, number: int) -> None:
        """Everything stops; what was not durable is dropped, kept, or torn."""
        oracle = self.oracle
        durable = [id for id in oracle.reported if id in oracle.commits and oracle.is_durable(id)]
        for process in self._processes:
            if process.role != "launcher":
                self.kill(process)
        self._announce_broken(self._processes)
        oracle.is_force_majeure = True
        for lost in self.media.cut_power(Random(number)):
            if self._is_traced:
                self._note(f"    {lost}")
        oracle.is_force_majeure = False
        self.new_store()
        for id in durable:
            if id not in oracle.commits:
                self.violate(f"I1: {id} was reported as committed, and is lost")
        oracle.check_all_whole()
        oracle.check_source()
        oracle.check_pins()

    def _damage(self, number: int) -> bool:
        """Change a byte of a committed checkpoint, cut it short, or remove an object of it."""
        oracle = self.oracle
        whole = [id for id in oracle.counting() if id in oracle.reported - oracle.damaged]
        if self._prunes or len(whole) < 2:
            return False
        random = Random(number)
        id = whole[-1] if random.random() < 0.7 else random.choice(whole)
        key = random.choice([*sorted(oracle.commits[id].objects), id.key(MANIFEST)])
        data = self.media.seen[key]
        how = random.choice(("flip", "flip", "cut", "remove"))
        at = random.randrange(len(data))
        flipped = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        oracle.damaged.add(id)
        if how == "flip" and key.endswith(".distcp"):
            oracle.damaged_inside.add(id)
        oracle.is_force_majeure = True
        changed = {"flip": flipped, "cut": data[:at], "remove": None}[how]
        commit = oracle.commits[id]
        self.media.set(key, changed, is_durable=True)
        if how != "remove":
            oracle.commits[id] = commit  # as it was meant
        oracle.is_force_majeure = False
        if self._is_traced:
            self._note(f"    {how} {key}")
        return True

    def _land(self, acts: list[Callable[[], None]]) -> None:
        """Requests whose callers have given up are carried out."""
        self._late = [(at, act) for at, act in self._late if act not in acts]
        for act in acts:
            try:
                act()
            except OSError:
                continue  # the name is taken: nothing happens
            if self._is_traced:
                self._note("*** a late request is carried out")

    def calm_down(self) -> None:
        """From here on nothing fails, and nobody is killed."""
        self._events, self._outage_ends = [], 0
        self._next_event = _NEVER
        self._visited = {}

    @property
    def has_stopped(self) -> bool:
        """Whether somebody is stopped, and may wake up."""
        return bool(self._stopped)

    def wake_all(self) -> None:
        """Let all who are stopped go on, to whatever end."""
        for process in [*self._stopped]:
            self._wake(process)
        self.land_all()
        self.run_on()

    def land_all(self) -> None:
        """Carry out every request that is under way."""
        self._land([act for _, act in self._late])

    def run_on(self) -> None:
        """Until nobody can do anything."""
        self.scheduler.run()

    def spawn(self, role: str, act: Callable[[], None]) -> None:
        """Let a new process act."""
        process = Process(role, role)
        self._processes.append(process)
        self.scheduler.spawn(process, act, role)

    def _judge_end(self, actor: Actor, error: BaseException) -> None:
        """An actor knows all errors that may befall it."""
        self.violate(f"{actor.process.name} ends with {type(error).__name__}: {error}")

    def _kill_all(self) -> None:
        for process in self._processes:
            self.kill(process)

    def _end_all(self) -> None:
        self._kill_all()
        self.scheduler.run()

    def _shuffled(self, keys: list[str]) -> list[str]:
        self._random.shuffle(keys)
        return keys

    def _note(self, text: str) -> None:
        actor = self.scheduler.current
        who = actor.process.name if actor else "-"
        doing = actor.activity if actor else "-"
        self.outcome.trace.append(
            f"{self._operations:6} {self.clock.seconds:8.2f} s  {who:12} {doing:10} {text}"
        )
