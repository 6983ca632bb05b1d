"""Spans are laid over one another, and time is never lost or counted twice."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepstep.observability.spans import Cause, Span, clipped, filled, overlay

BASE = [Span(Cause.UNKNOWN, 0.0, 10.0)]


def test_what_lies_over_replaces_what_lies_below() -> None:
    laid = overlay(BASE, [Span(Cause.EVAL, 2.0, 3.0), Span(Cause.STAGE, 5.0, 20.0)])
    assert [(span.cause, span.began, span.ended) for span in laid] == [
        (Cause.UNKNOWN, 0.0, 2.0),
        (Cause.EVAL, 2.0, 3.0),
        (Cause.UNKNOWN, 3.0, 5.0),
        (Cause.STAGE, 5.0, 10.0),
    ]


def test_of_two_that_overlap_the_earlier_one_goes_first() -> None:
    laid = overlay(BASE, [Span(Cause.EVAL, 2.0, 6.0), Span(Cause.STAGE, 4.0, 8.0)])
    assert [(span.cause, span.seconds) for span in laid[1:3]] == [
        (Cause.EVAL, 4.0),
        (Cause.STAGE, 2.0),
    ]


def test_nothing_is_added_outside() -> None:
    assert overlay(BASE, [Span(Cause.EVAL, 10.0, 12.0), Span(Cause.EVAL, -3.0, 0.0)]) == BASE
    assert clipped([Span(Cause.EVAL, -1.0, 1.0)], 0.0, 10.0) == [Span(Cause.EVAL, 0.0, 1.0)]


def test_seconds_are_taken_from_the_causes_named_alone() -> None:
    spans = [
        Span(Cause.REDO, 0.0, 1.0),
        Span(Cause.STAGE, 1.0, 2.0),
        Span(Cause.PRODUCTIVE, 2.0, 5.0),
    ]
    among = frozenset({Cause.PRODUCTIVE, Cause.REDO})
    result = filled(spans, Cause.DATA, 1.5, among=among)
    assert [(span.cause, span.seconds) for span in result] == [
        (Cause.DATA, 1.0),
        (Cause.STAGE, 1.0),
        (Cause.DATA, 0.5),
        (Cause.PRODUCTIVE, 2.5),
    ]


def test_more_seconds_than_there_are_take_all() -> None:
    spans = [Span(Cause.REDO, 0.0, 1.0)]
    assert filled(spans, Cause.DATA, 9.0, among=frozenset({Cause.REDO})) == [
        Span(Cause.DATA, 0.0, 1.0)
    ]


_moments = st.floats(min_value=-5.0, max_value=15.0, allow_nan=False)
_tops = st.lists(
    st.tuples(st.sampled_from(list(Cause)), _moments, _moments).map(
        lambda drawn: Span(drawn[0], min(drawn[1:]), max(drawn[1:]))
    ),
    max_size=12,
)


@given(st.lists(_tops, min_size=1, max_size=4))
def test_however_much_is_laid_over_the_whole_stays_whole(layers: list[list[Span]]) -> None:
    spans = BASE
    for layer in layers:
        spans = overlay(spans, layer)
    assert spans[0].began == 0.0
    assert spans[-1].ended == 10.0
    for before, after in pairwise(spans):
        assert before.ended == after.began
    assert all(span.seconds > 0 for span in spans)
    assert sum(span.seconds for span in spans) == pytest.approx(10.0)
