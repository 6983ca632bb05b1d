"""Loss against step: of a run, and of one to compare it with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from keepstep.observability.page.markup import Html, joined, tag
from keepstep.observability.page.words import ticks

Points = Sequence[tuple[int, float]]
"""Step and loss, ascending."""

_MOST_POINTS = 1200
_LABEL_FLIPS_AT = 0.72


@dataclass(frozen=True, slots=True)
class Kill:
    """Where a run was torn from its work."""

    step: int
    label: str


def loss_chart(
    lives: Sequence[Points],
    *,
    reference: Points = (),
    kills: Sequence[Kill] = (),
) -> Html:
    """The curve of each life of a run, one after the other.

    Steps that an earlier life had reached are drawn as done again.
    """
    everything = [point for points in (*lives, reference) for point in points]
    if not everything:
        return Html("")
    frame = _Frame.around(everything)
    paths: list[str] = [_path(reference, frame, "ref")] if reference else []
    reached = -1
    has_repeats = False
    for life in lives:
        again = [point for point in life if point[0] <= reached]
        fresh = [point for point in life if point[0] > reached]
        has_repeats = has_repeats or bool(again)
        paths += [
            _path([*again, *fresh[:1]], frame, "run again") if again else "",
            _path(fresh, frame, "run"),
        ]
        reached = max([reached, *(step for step, _ in life)])
    svg = tag(
        "svg",
        _grid(frame),
        paths,
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
        role="img",
        aria_label="loss against step",
    )
    area = tag("div", svg, [_rule(kill, frame) for kill in kills], class_="area")
    cells = [
        *([tag("span"), _marks(kills, frame)] if kills else []),
        _loss_axis(frame),
        area,
        tag("span"),
        _step_axis(frame),
    ]
    return joined(
        tag("div", cells, class_="plot"),
        _legend(has_reference=bool(reference), has_repeats=has_repeats, has_kills=bool(kills)),
    )


def points_of(losses: Mapping[int, float]) -> list[tuple[int, float]]:
    """In order of steps."""
    return sorted(losses.items())


@dataclass(frozen=True, slots=True)
class _Frame:
    first_step: int
    last_step: int
    low: float
    high: float

    @classmethod
    def around(cls, points: Points) -> "_Frame":
        steps, losses = [step for step, _ in points], [loss for _, loss in points]
        margin = 0.06 * (max(losses) - min(losses)) or 1.0
        # A run that begins at the beginning does so at the axis.
        first = 0 if min(steps) <= 0.05 * max(steps) else min(steps)
        return cls(first, max(steps), min(losses) - margin, max(losses) + margin)

    def x(self, step: float) -> float:
        """From 0 to 1."""
        return (step - self.first_step) / max(self.last_step - self.first_step, 1)

    def y(self, loss: float) -> float:
        """From 0, above, to 1, below."""
        return (self.high - loss) / (self.high - self.low)

    @property
    def loss_ticks(self) -> list[float]:
        span = self.high - self.low
        step = next(after - before for before, after in pairwise(ticks(span, most=5)))
        first = int(self.low / step) + (self.low > 0)
        return [step * n for n in range(first, int(self.high / step) + 1)]


def _path(points: Points, frame: _Frame, kind: str) -> Html:
    if not points:
        return Html("")
    stride = max(1, len(points) // _MOST_POINTS)
    thinned = [*points[::stride], *([points[-1]] if (len(points) - 1) % stride else [])]
    drawn = " ".join(
        f"{1000 * frame.x(step):.1f},{1000 * frame.y(loss):.1f}" for step, loss in thinned
    )
    return tag("polyline", points=drawn, class_=kind)


def _grid(frame: _Frame) -> Html:
    return joined(
        tag("line", x1=0, x2=1000, y1=y, y2=y, class_="grid")
        for y in (f"{1000 * frame.y(loss):.1f}" for loss in frame.loss_ticks)
    )


def _rule(kill: Kill, frame: _Frame) -> Html:
    return tag("b", class_="rule", style=f"left:{100 * frame.x(kill.step):.3f}%")


def _marks(kills: Sequence[Kill], frame: _Frame) -> Html:
    shown: list[tuple[float, str, list[str]]] = []
    for kill in sorted(kills, key=lambda kill: kill.step):
        place = frame.x(kill.step)
        if shown and place - shown[-1][0] < 0.12:
            shown[-1][2].append(kill.label)
        else:
            shown.append((place, kill.label, [kill.label]))
    labels = []
    for place, label, all_labels in shown:
        more = f" +{len(all_labels) - 1}" if len(all_labels) > 1 else ""
        labels.append(
            tag(
                "span",
                label + more,
                class_="flip" if place > _LABEL_FLIPS_AT else None,
                style=f"left:{100 * place:.3f}%",
                title="\n".join(all_labels),
            )
        )
    return tag("div", labels, class_="marks")


def _loss_axis(frame: _Frame) -> Html:
    labels = [
        tag("span", f"{loss:g}", style=f"top:{100 * frame.y(loss):.2f}%")
        for loss in (round(loss, 6) for loss in frame.loss_ticks)
    ]
    return tag("div", labels, class_="ys")


def _step_axis(frame: _Frame) -> Html:
    span = frame.last_step - frame.first_step
    labels = []
    for number, offset in enumerate(ticks(max(span, 1))):
        step = frame.first_step + offset
        place = frame.x(step)
        names = [*(["odd"] if number % 2 else []), *(["last"] if place > 0.97 else [])]
        text = f"step {step:g}" if number == 0 else f"{step:g}"
        labels.append(
            tag("span", text, class_=" ".join(names) or None, style=f"left:{100 * place:.3f}%")
        )
    return tag("div", labels, class_="axis")


def _legend(*, has_reference: bool, has_repeats: bool, has_kills: bool) -> Html:
    entries = [
        ("line reference", "uninterrupted run", has_reference),
        ("line", "this run", True),
        ("line repeat", "steps done again", has_repeats),
        ("line killed", "interruption", has_kills),
    ]
    shown = [tag("span", tag("i", class_=name), label) for name, label, occurs in entries if occurs]
    return tag("div", shown, class_="legend")
