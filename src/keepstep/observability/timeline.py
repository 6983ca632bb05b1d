"""From the ledgers of a run to what each of its processes was doing, without gaps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from keepstep.observability.incarnations import Event, Incarnation, incarnations
from keepstep.observability.spans import Background, Cause, Span, clipped, filled, overlay
from keepstep.observability.startup import LAUNCHER, PROCESS, RENDEZVOUS, WAITING
from keepstep.observability.work import STALL, WORK
from keepstep.phases import Phase

_TRAINING = frozenset({Cause.PRODUCTIVE, Cause.REDO})
_UNUSUAL = 2.0
"""How many times the typical step the first one takes before the rest counts as start-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One process of one incarnation."""

    rank: int
    spans: Sequence[Span]
    """Ascending, one after the other, from the incarnation's beginning to its end."""
    background: Sequence[Span]
    """Saves under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """An incarnation, and the time before it that its processes were missing."""

    incarnation: Incarnation
    began: float
    """When the one before it ended; where that had nothing left to do, its own first sign."""
    rows: Sequence[Row]
    is_continuation: bool
    """Whether it takes up what another one was torn from."""

    @property
    def ended(self) -> float:
        return self.incarnation.ended

    @property
    def process_seconds(self) -> float:
        return (self.ended - self.began) * len(self.rows)


def timeline(events: Iterable[Event]) -> list[Episode]:
    """The whole run. ``events``: those of all ledgers, each in its own order."""
    episodes: list[Episode] = []
    for incarnation in incarnations(events):
        previous = episodes[-1] if episodes else None
        episodes.append(_episode(incarnation, previous))
    return episodes


def _episode(incarnation: Incarnation, previous: Episode | None) -> Episode:
    is_continuation = previous is not None and not previous.incarnation.is_complete
    began = incarnation.first_sign
    if previous is not None:
        began = previous.ended if is_continuation else max(began, previous.ended)
    began = min(began, incarnation.ended)
    missing = Cause.STARTUP
    if is_continuation:
        missing = Cause.DOWN if incarnation.is_restart_of_workers else Cause.WAITING
    return Episode(
        incarnation=incarnation,
        began=began,
        is_continuation=is_continuation,
        rows=tuple(
            _row(incarnation, rank, began, missing) for rank in range(incarnation.world_size)
        ),
    )


def _row(incarnation: Incarnation, rank: int, began: float, missing: Cause) -> Row:
    ended = incarnation.ended
    spans = [Span(Cause.UNKNOWN, began, ended)]
    for layer in (
        _before_session(incarnation, rank, began, missing),
        _training(incarnation, rank),
        _interruptions(incarnation, rank),
        _after_life(incarnation, rank),
    ):
        spans = overlay(spans, layer)
    for work in incarnation.events(rank, WORK):
        spans = _with_waits(spans, work)
    background = clipped(_saves(incarnation, rank), began, ended)
    return Row(rank=rank, spans=spans, background=background)


def _before_session(
    incarnation: Incarnation, rank: int, began: float, missing: Cause
) -> list[Span]:
    """Up to the first step."""
    start = incarnation.start(rank)
    if start is None:
        return []
    before = dict(incarnation.before(rank))
    if LAUNCHER in before and before[LAUNCHER][0] < began:
        del before[LAUNCHER]  # it has started workers before
    first = min([moments[0] for moments in before.values()] + [start["opened"]])
    meeting = min([before[name][0] for name in (WAITING, RENDEZVOUS) if name in before] or [first])
    met = before.get(RENDEZVOUS, (first, first))[1]
    known = [
        Span(Cause.STARTUP, first, meeting, "launcher"),
        Span(Cause.WAITING, *before[WAITING]) if WAITING in before else None,
        Span(Cause.RENDEZVOUS, *before[RENDEZVOUS]) if RENDEZVOUS in before else None,
        Span(Cause.STARTUP, met, start["loading"], _parts(before, start)),
        Span(Cause.RESTORE, start["loading"], start["time"], _source(incarnation)),
        Span(missing, began, max(began, first)),
    ]
    return [span for span in known if span is not None and span.ended > span.began]


def _parts(before: Mapping[str, tuple[float, float]], start: Event) -> str:
    """What a start-up consisted of."""
    parts = [
        f"{name.replace('_', ' ')} {ended - began:.1f} s"
        for name, (began, ended) in before.items()
        if name not in (RENDEZVOUS, WAITING, PROCESS)
    ]
    return ", ".join([*parts, f"session and model {start['loading'] - start['opened']:.1f} s"])


def _source(incarnation: Incarnation) -> str:
    return f"step {incarnation.resumed_step}" if incarnation.resumed_step else "fresh start"


def _training(incarnation: Incarnation, rank: int) -> list[Span]:
    """From the first step to the last sign of life, as if nothing else had happened."""
    ready = _ready(incarnation, rank)
    last = _last_sign(incarnation, rank)
    if ready is None or not incarnation.ticks:
        # Nothing was finished: not one step.
        return [Span(Cause.STARTUP, ready, last, "first step")] if ready is not None else []
    first_step = _first_step(incarnation, ready)
    redone = [at for at, step, _ in incarnation.ticks if step <= incarnation.furthest_before]
    caught_up = max(redone, default=ready)
    spans = [
        first_step,
        Span(Cause.REDO, ready, caught_up, _steps(incarnation, redone=True)),
        Span(Cause.PRODUCTIVE, max(ready, caught_up), last, _steps(incarnation, redone=False)),
    ]
    # Of two that overlap the earlier one goes first: the first step's excess.
    return [span for span in spans if span is not None and span.ended > span.began]


def _first_step(incarnation: Incarnation, ready: float) -> Span | None:
    """What the first step took beyond a typical one: kernels, caches, connections."""
    moments = [at for at, _, _ in incarnation.ticks]
    if len(moments) < 3:
        return None
    typical = median(after - before for before, after in pairwise(moments))
    excess = moments[0] - ready - typical
    if excess <= (_UNUSUAL - 1) * typical:
        return None
    return Span(Cause.STARTUP, ready, ready + excess, "the first step, beyond a typical one")


def _steps(incarnation: Incarnation, *, redone: bool) -> str:
    steps = [
        step for _, step, _ in incarnation.ticks if (step <= incarnation.furthest_before) == redone
    ]
    return f"steps {min(steps)} to {max(steps)}" if steps else ""


def _interruptions(incarnation: Incarnation, rank: int) -> list[Span]:
    """Stalls and phases: each was written when it ended."""
    found = []
    for event in incarnation.events(rank):
        if event["event"] == STALL:
            note = f"step {event['step']}"
            found.append(_ending(Cause.STAGE, event, note))
        elif event["event"] == "phase":
            found.append(_ending(Cause.EVAL, event, f"{event['name']}, step {event['step']}"))
    return found


def _ending(cause: Cause, event: Event, note: str) -> Span:
    return Span(cause, event["time"] - event["seconds"], event["time"], note)


def _after_life(incarnation: Incarnation, rank: int) -> list[Span]:
    last = _last_sign(incarnation, rank)
    return [Span(Cause.DOWN, last, incarnation.ended)] if last < incarnation.ended else []


def _with_waits(spans: list[Span], work: Event) -> list[Span]:
    """Where in its window training waited for data is not known: it is put first."""
    began, ended = float(work["began"]), float(work["time"])
    seconds = float(work.get("data_s", 0.0))
    if seconds <= 0:
        return spans
    inside = filled(clipped(spans, began, ended), Cause.DATA, seconds, among=_TRAINING)
    return overlay(spans, inside)


def _ready(incarnation: Incarnation, rank: int) -> float | None:
    """When a rank stood before its first step."""
    start = incarnation.start(rank)
    if start is not None:
        return float(start["time"])
    begun = incarnation.events(rank, "generation") or incarnation.events(0, "generation")
    return float(begun[0]["time"]) if begun else None


def _last_sign(incarnation: Incarnation, rank: int) -> float:
    """Its own, or the coordinator's last step: steps end on all ranks together."""
    signs = [event["time"] for event in incarnation.events(rank)[-1:]]
    signs += [at for at, _, _ in incarnation.ticks[-1:]]
    return min(max(signs, default=incarnation.ended), incarnation.ended)


def _saves(incarnation: Incarnation, rank: int) -> list[Span]:
    """Writing and committing of each save, and what became of those without an end."""
    spans: list[Span] = []
    open_since: Event | None = None
    for event in incarnation.events(rank):
        if event["event"] == "save_begun":
            spans += _cut_short(open_since, event["time"])
            open_since = event
        elif event["event"] == "save":
            spans += _committed(event)
            open_since = None
        elif event["event"] == "save_failed" and open_since is not None:
            note = f"step {event['step']} failed: {event.get('error', '')}"
            spans.append(Span(Background.CUT_SHORT, open_since["time"], event["time"], note))
            open_since = None
    return spans + _cut_short(open_since, _last_sign(incarnation, rank))


def _committed(save: Event) -> list[Span]:
    if "persisting" not in save:
        return []
    began = float(save["persisting"])
    written = began + float(save.get(f"{Phase.WRITE}_s", 0.0))
    rest = (Phase.ARRIVE, Phase.PUBLISH, Phase.DEPART)
    ended = written + sum(float(save.get(f"{phase}_s", 0.0)) for phase in rest)
    note = f"step {save['step']}"
    return [
        Span(Background.WRITE, began, written, note),
        Span(Background.COMMIT, written, ended, note),
    ]


def _cut_short(begun: Event | None, ended: float) -> list[Span]:
    if begun is None:
        return []
    return [Span(Background.CUT_SHORT, begun["time"], ended, f"step {begun['step']}")]
