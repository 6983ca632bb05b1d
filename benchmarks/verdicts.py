"""A claim, and what a run says about it."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.results import Results
from benchmarks.scenario import Scenario

Found = Iterator[tuple[Scenario, float]]


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim's figure in one scenario."""

    where: str
    value: float


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence with a bound, and how to find its figure in every scenario it speaks of."""

    text: str
    bound: Literal["at most", "at least"]
    target: float
    find: Callable[[Results], Found]
    unit: str = "x"

    def judge(self, results: Results) -> "Verdict":
        findings = [Finding(s.title, round(value, 4)) for s, value in self.find(results)]
        return Verdict(self.text, self.bound, self.target, self.unit, tuple(findings))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim held against a run: it holds only where it holds everywhere."""

    text: str
    bound: Literal["at most", "at least"]
    target: float
    unit: str
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Finding | None:
        if not self.findings:
            return None
        sign = 1 if self.bound == "at most" else -1
        return max(self.findings, key=lambda finding: sign * finding.value)

    @property
    def answer(self) -> Literal["pass", "FAIL", "not measured"]:
        if self.worst is None:
            return "not measured"
        holds = (
            self.worst.value <= self.target
            if self.bound == "at most"
            else self.worst.value >= self.target
        )
        return "pass" if holds else "FAIL"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"answer": self.answer}
