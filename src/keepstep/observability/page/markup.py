"""HTML, piece by piece."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Content = str | Iterable[str]
"""Markup, or text that will be escaped."""


def tag(name: str, *content: Content, **attributes: object) -> Html:
    """An element. ``class_`` is the class, ``data_x`` is ``data-x``; ``None`` leaves one out."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{shown}>{joined(*content)}</{name}>")


def joined(*content: Content) -> Html:
    """One after the other."""
    return Html("".join(_escaped(piece) for pieces in content for piece in _pieces(pieces)))


def table(
    head: Sequence[Content], rows: Iterable[Sequence[Content]], *, numbers: Iterable[int] = ()
) -> Html:
    """A table that scrolls by itself where the screen is narrow; ``numbers`` are flush right."""
    right = frozenset(numbers)

    def cells(kind: str, row: Sequence[Content]) -> Html:
        return tag(
            "tr",
            [
                tag(kind, cell, class_="number" if place in right else None)
                for place, cell in enumerate(row)
            ],
        )

    body = tag("tbody", [cells("td", row) for row in rows])
    return tag("div", tag("table", tag("thead", cells("th", head)), body), class_="scroll")


def page(title: str, *content: Content) -> str:
    """A whole document; ASCII."""
    style = files(__package__).joinpath("style.css").read_text(encoding="ascii")
    head = joined(
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        Html('<link rel="icon" href="data:,">'),
        tag("title", title),
        Html(f"<style>{style}</style>"),
    )
    body = tag("body", tag("main", *content))
    document = f'<!doctype html>\n<html lang="en"><head>{head}</head>{body}</html>\n'
    return document.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _pieces(content: Content) -> Iterable[str]:
    return [content] if isinstance(content, str) else content


def _escaped(piece: str) -> str:
    return piece if isinstance(piece, Html) else escape(piece)
