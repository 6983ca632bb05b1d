"""What a Job's ``podFailurePolicy`` says of a pod that failed: the first rule that matches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

Rule = Mapping[str, Any]


class Action(StrEnum):
    """Of a rule."""

    COUNT = "Count"
    IGNORE = "Ignore"
    FAIL_INDEX = "FailIndex"
    FAIL_JOB = "FailJob"


class FailedPod(Protocol):
    """What the rules ask about."""

    @property
    def name(self) -> str: ...
    @property
    def exit_codes(self) -> Mapping[str, int]:
        """By container, of those that have ended."""

    @property
    def conditions(self) -> Mapping[str, str]:
        """Status by type."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to follow from a failed pod."""

    action: Action
    rule: int | None
    """Index of the rule that matched; none, and a failure counts."""
    why: str


def verdict_on(pod: FailedPod, rules: Sequence[Rule]) -> Verdict:
    """The action of the first rule that matches. The rules are valid by the schema."""
    for number, rule in enumerate(rules):
        why = _why_matching(pod, rule)
        if why:
            return Verdict(Action(rule["action"]), number, why)
    return Verdict(Action.COUNT, None, f"pod {pod.name} matches no rule")


def _why_matching(pod: FailedPod, rule: Rule) -> str | None:
    if "onExitCodes" in rule:
        return _matching_exit_code(pod, rule["onExitCodes"])
    for pattern in rule.get("onPodConditions", ()):
        if pod.conditions.get(pattern["type"]) == pattern.get("status", "True"):
            return f"pod {pod.name} has condition {pattern['type']}"
    return None


def _matching_exit_code(pod: FailedPod, wanted: Mapping[str, Any]) -> str | None:
    """Only containers that have ended count, and 0 never matches, not even ``NotIn``."""
    container = wanted.get("containerName")
    for name, code in pod.exit_codes.items():
        if code == 0 or container not in (None, name):
            continue
        if (code in wanted["values"]) == (wanted["operator"] == "In"):
            return f"container {name} of pod {pod.name} ended with {code}"
    return None
