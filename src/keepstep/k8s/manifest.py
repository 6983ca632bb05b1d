"""One object of a rendered manifest, and what is found wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    file: str
    object: str
    """Kind and name."""
    field: str
    """Dotted, from the object's root."""
    wrong: str
    instead: str
    """What to write."""

    def __str__(self) -> str:
        return f"{self.file}: {self.object}: {self.field}: {self.wrong}; {self.instead}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object, and the file that it stands in."""

    file: str
    body: Body

    @property
    def kind(self) -> str:
        return str(self.body.get("kind", ""))

    @property
    def name(self) -> str:
        return str(at(self.body, "metadata.name") or "")

    @property
    def title(self) -> str:
        return f"{self.kind}/{self.name}"

    def get(self, path: str) -> Any:
        """What stands there, or ``None``."""
        return at(self.body, path)

    def finding(self, field: str, wrong: str, instead: str) -> Finding:
        return Finding(file=self.file, object=self.title, field=field, wrong=wrong, instead=instead)


def at(body: object, path: str) -> Any:
    """What stands at a dotted path, with numbers for places in lists; ``None`` if nothing does."""
    found: object = body
    for word in path.split("."):
        if isinstance(found, Mapping):
            found = found.get(word)
        elif isinstance(found, list) and word.isdecimal() and int(word) < len(found):
            found = found[int(word)]
        else:
            return None
    return found


def items(body: object, path: str) -> Sequence[Body]:
    """The mappings of a list that stands there."""
    found = at(body, path)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def named(entries: Sequence[Body], name: object) -> Body:
    """The entry of that name; empty if there is none."""
    return next((entry for entry in entries if entry.get("name") == name), {})


def fits(selector: object, labels: object) -> bool:
    """Whether a selector, plain or with ``matchLabels`` and ``matchExpressions``, takes these."""
    if not isinstance(selector, Mapping) or not isinstance(labels, Mapping):
        return False
    is_plain = not {"matchLabels", "matchExpressions"} & set(selector)
    wanted = selector if is_plain else selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _meets(expression, labels)
        for expression in ([] if is_plain else selector.get("matchExpressions") or [])
    )


def _meets(expression: Body, labels: Body) -> bool:
    key, values = expression.get("key"), expression.get("values") or []
    match expression.get("operator"):
        case "In":
            return labels.get(key) in values  # type: ignore[arg-type]  # whatever the key is
        case "NotIn":
            return labels.get(key) not in values  # type: ignore[arg-type]  # the same
        case "Exists":
            return key in labels
        case _:
            return key not in labels
