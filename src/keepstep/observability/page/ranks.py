"""A timeline: what each rank was doing when."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keepstep.observability.page.causes import CLASSES, legend
from keepstep.observability.page.markup import Html, joined, tag
from keepstep.observability.page.words import (
    duration_in_words,
    time_label,
    time_ticks,
)
from keepstep.observability.spans import Background, Cause, Span
from keepstep.observability.timeline import Episode

_MOST_RANKS = 16
_MOST_SPANS = 1500
_LABEL_FLIPS_AT = 0.75
_LABEL_WIDTH = 0.1
"""Of the chart, roughly: marks closer together share a label."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment."""

    time: float
    label: str
    detail: str = ""
    is_calm: bool = False
    """Whether it is no harm."""


def rank_chart(episodes: Sequence[Episode], marks: Iterable[Mark] = ()) -> Html:
    """A row for each rank, with what its saves did in the background below."""
    began = min(episode.began for episode in episodes)
    marks = sorted(marks, key=lambda mark: mark.time)
    ended = max([episode.ended for episode in episodes] + [mark.time for mark in marks])
    axis = _Axis(began, max(ended - began, 1e-6))
    ranks = max(len(episode.rows) for episode in episodes)
    shown = _spread(ranks)
    cells: list[str] = []
    if marks:
        cells += [tag("span", class_="name"), _labels(marks, axis)]
    for rank in shown:
        rows = [e.rows[rank] for e in episodes if rank < len(e.rows)]
        spans = [span for row in rows for span in row.spans]
        saves = [span for row in rows for span in row.background]
        track = tag("div", _lane(spans, axis), _back(saves, axis), _rules(marks, axis))
        cells += [
            tag("span", f"rank {rank}", class_="name"),
            Html(track.replace("<div>", '<div class="track">', 1)),
        ]
    cells += [tag("span", class_="name"), _time_axis(axis)]
    occurring = {
        span.cause
        for episode in episodes
        for row in episode.rows
        for span in (*row.spans, *row.background)
    }
    note = f"{len(shown)} of {ranks} ranks are shown" if len(shown) < ranks else ""
    return joined(
        tag("div", cells, class_="ranks"),
        legend(occurring),
        tag("p", note, class_="sub") if note else "",
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    began: float
    seconds: float

    def place(self, moment: float) -> float:
        """From 0 to 1."""
        return min(max((moment - self.began) / self.seconds, 0.0), 1.0)


def _spread(ranks: int) -> list[int]:
    """All, or some from the first to the last."""
    if ranks <= _MOST_RANKS:
        return list(range(ranks))
    return sorted({round(place * (ranks - 1) / (_MOST_RANKS - 1)) for place in range(_MOST_RANKS)})


def _lane(spans: Sequence[Span], axis: _Axis) -> Html:
    return tag("div", [_piece(span, axis) for span in legible(spans)], class_="lane")


def _back(spans: Sequence[Span], axis: _Axis) -> Html:
    return tag("div", [_piece(span, axis) for span in legible(spans)], class_="back")


def _piece(span: Span, axis: _Axis) -> Html:
    left, right = axis.place(span.began), axis.place(span.ended)
    note = f" ({span.note})" if span.note else ""
    return tag(
        "i",
        class_=CLASSES[span.cause],
        style=f"left:{100 * left:.3f}%;width:{100 * (right - left):.3f}%",
        title=f"{span.cause.value}, {duration_in_words(span.seconds)}{note}",
    )


def legible(spans: Sequence[Span], most: int = _MOST_SPANS) -> list[Span]:
    """Not more than about so many: what is narrower than a line is drawn as what prevails there."""
    if len(spans) <= most:
        return list(spans)
    first, last = spans[0].began, max(span.ended for span in spans)
    width = (last - first) / most
    result: list[Span] = []
    crowd: list[Span] = []
    for span in spans:
        is_near = crowd and span.ended - crowd[0].began <= width
        if crowd and not is_near:
            result.append(_prevailing(crowd))
            crowd = []
        crowd.append(span)
    return [*result, _prevailing(crowd)] if crowd else result


def _prevailing(crowd: Sequence[Span]) -> Span:
    if len(crowd) == 1:
        return crowd[0]
    seconds: dict[Cause | Background, float] = {}
    for span in crowd:
        seconds[span.cause] = seconds.get(span.cause, 0.0) + span.seconds
    cause = max(seconds, key=lambda each: seconds[each])
    others = len(seconds) - 1
    note = f"and {others} more in between" if others else ""
    return Span(cause, crowd[0].began, crowd[-1].ended, note)


def _labels(marks: Sequence[Mark], axis: _Axis) -> Html:
    """Those that would lie over one another are counted in the first one's label."""
    groups: list[list[Mark]] = []
    for mark in marks:
        if groups and axis.place(mark.time) - axis.place(groups[-1][0].time) < _LABEL_WIDTH:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    labels = []
    for group in groups:
        place = axis.place(group[0].time)
        classes = [
            *(["flip"] if place > _LABEL_FLIPS_AT else []),
            *(["calm"] if all(mark.is_calm for mark in group) else []),
        ]
        more = f" +{len(group) - 1}" if len(group) > 1 else ""
        labels.append(
            tag(
                "span",
                group[0].label + more,
                class_=" ".join(classes) or None,
                style=f"left:{100 * place:.3f}%",
                title="\n".join(f"{mark.label}: {mark.detail}" for mark in group),
            )
        )
    return tag("div", labels, class_="marks")


def _rules(marks: Iterable[Mark], axis: _Axis) -> Html:
    return joined(
        tag(
            "b",
            class_="rule calm" if mark.is_calm else "rule",
            style=f"left:{100 * axis.place(mark.time):.3f}%",
        )
        for mark in marks
    )


def _time_axis(axis: _Axis) -> Html:
    moments = time_ticks(axis.seconds)
    labels = []
    for number, moment in enumerate(moments):
        place = moment / axis.seconds
        is_last = place > 0.96
        names = [*(["odd"] if number % 2 else []), *(["last"] if is_last else [])]
        labels.append(
            tag(
                "span",
                time_label(moment, moments[-1] / max(len(moments) - 1, 1)),
                class_=" ".join(names) or None,
                style=f"left:{100 * place:.3f}%",
            )
        )
    return tag("div", labels, class_="axis")
