"""What the Job controller of Kubernetes decides, without a clock or a process of its own.

``JobController.sync`` is told of all pods of an Indexed Job and answers which ones to create and
to delete. The rules are those of Kubernetes 1.31 to 1.34 (``pkg/controller/job``), as far as the
fields go that ``_KNOWN`` lists; another field is refused, not passed over.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keepstep.k8s.failure_policy import Action, Verdict, verdict_on
from keepstep.testing.cluster.pod_facts import Phase, PodFacts

_KNOWN = frozenset(
    {
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "completionMode",
        "completions",
        "maxFailedIndexes",
        "parallelism",
        "podFailurePolicy",
        "podReplacementPolicy",
        "successPolicy",
        "suspend",
        "template",
        "ttlSecondsAfterFinished",
    }
)
_UNLIMITED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Condition:
    """Of a Job."""

    type: str
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Orders:
    """What is to be done now."""

    create: tuple[int, ...] = ()
    """Indexes."""
    delete: tuple[str, ...] = ()
    """Names of pods."""


@dataclass(slots=True)
class JobStatus:
    """What became of the pods so far."""

    succeeded: set[int] = field(default_factory=set)
    """Indexes."""
    failed: int = 0
    """Pods whose failure counts."""
    failed_indexes: set[int] = field(default_factory=set)
    counted: Counter[int] = field(default_factory=Counter)
    """By index: failures that were charged to its budget."""
    ignored: Counter[int] = field(default_factory=Counter)
    """By index: failures that were not."""
    verdicts: list[tuple[PodFacts, Verdict]] = field(default_factory=list)
    """On each pod that failed, in order."""
    ending: Condition | None = None
    """``FailureTarget`` or ``SuccessCriteriaMet``: pods are being ended."""
    final: Condition | None = None
    """``Complete`` or ``Failed``: all pods have ended."""


class JobController:
    """One Job.

    Args:
        backoff_seconds: Pause before the first replacement of an index; doubled each time.
        longest_backoff_seconds: Where doubling ends.
        seconds_scale: What a second of the manifest is worth here.

    *Raises:* ``ValueError`` for a Job that this controller does not run.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        backoff_seconds: float = 10.0,
        longest_backoff_seconds: float = 600.0,
        seconds_scale: float = 1.0,
    ) -> None:
        _check(spec)
        self.spec = spec
        self.status = JobStatus()
        self.completions = int(spec["completions"])
        self._rules = spec.get("podFailurePolicy", {}).get("rules", [])
        self._per_index: int | None = spec.get("backoffLimitPerIndex")
        default = 6 if self._per_index is None else _UNLIMITED
        self._backoff_limit = int(spec.get("backoffLimit", default))
        self._backoff_seconds = backoff_seconds * seconds_scale
        self._longest_backoff_seconds = longest_backoff_seconds * seconds_scale
        self._seconds_scale = seconds_scale
        self._started_seconds: float | None = None
        self._seen: set[str] = set()
        self._not_before: dict[int, float] = {}
        self._last_failures: tuple[int, float] = (0, 0.0)

    def sync(self, pods: Sequence[PodFacts], now_seconds: float) -> Orders:
        """Take note of what has ended, and decide what follows."""
        status = self.status
        if status.final is not None:
            return Orders()
        for pod in sorted(pods, key=lambda pod: pod.ended_seconds):
            if pod.phase.is_final and pod.name not in self._seen:
                self._seen.add(pod.name)
                self._account(pod)
        living = [pod for pod in pods if not pod.phase.is_final]
        active = [pod for pod in living if not pod.is_terminating]
        if status.ending is None and not self._is_suspended:
            if self._started_seconds is None:
                self._started_seconds = now_seconds
            status.ending = self._ending(now_seconds)
        if status.ending is not None:
            status.final = None if living else _final(status.ending)
            return Orders(delete=tuple(pod.name for pod in active))
        return self._manage(living, active, now_seconds)

    @property
    def _is_suspended(self) -> bool:
        return bool(self.spec.get("suspend", False))

    def _account(self, pod: PodFacts) -> None:
        status, index = self.status, pod.index
        if pod.phase is Phase.SUCCEEDED:
            status.succeeded.add(index)
            self._last_failures = (0, 0.0)
            return
        verdict = verdict_on(pod, self._rules)
        status.verdicts.append((pod, verdict))
        before = status.counted[index]
        is_counted = verdict.action is not Action.IGNORE
        status.failed += is_counted
        (status.counted if is_counted else status.ignored)[index] += 1
        self._back_off(pod)
        if verdict.action is Action.FAIL_JOB and status.ending is None:
            status.ending = Condition(
                "FailureTarget", "PodFailurePolicy", f"{verdict.why} matching rule {verdict.rule}"
            )
        is_spent = self._per_index is not None and is_counted and before >= self._per_index
        if verdict.action is Action.FAIL_INDEX or is_spent:
            status.failed_indexes.add(index)

    def _back_off(self, pod: PodFacts) -> None:
        """Ignored failures lengthen the pause as well: that is how Kubernetes has it."""
        failures = self._last_failures[0] + 1
        self._last_failures = (failures, pod.ended_seconds)
        if self._per_index is not None:
            failures = self.status.counted[pod.index] + self.status.ignored[pod.index]
        pause = self._backoff_seconds * 2.0 ** min(failures - 1, 30)
        until = pod.ended_seconds + min(pause, self._longest_backoff_seconds)
        indexes = range(self.completions) if self._per_index is None else (pod.index,)
        self._not_before.update(dict.fromkeys(indexes, until))

    def _ending(self, now_seconds: float) -> Condition | None:
        status, spec = self.status, self.spec
        deadline = spec.get("activeDeadlineSeconds")
        failed, succeeded = len(status.failed_indexes), len(status.succeeded)
        reason = None
        if status.failed > self._backoff_limit:
            reason = "BackoffLimitExceeded"
        elif deadline is not None and self._age(now_seconds) >= deadline * self._seconds_scale:
            reason = "DeadlineExceeded"
        elif failed > spec.get("maxFailedIndexes", _UNLIMITED):
            reason = "MaxFailedIndexesExceeded"
        elif failed and failed + succeeded >= self.completions:
            reason = "FailedIndexes"
        if reason is not None:
            return Condition("FailureTarget", reason)
        rules = spec.get("successPolicy", {}).get("rules", [])
        for number, rule in enumerate(rules):
            if _is_met(rule, status.succeeded):
                return Condition("SuccessCriteriaMet", "SuccessPolicy", f"matched rule {number}")
        if succeeded == self.completions:
            return Condition("SuccessCriteriaMet", "CompletionsReached")
        return None

    def _age(self, now_seconds: float) -> float:
        return now_seconds - (
            now_seconds if self._started_seconds is None else self._started_seconds
        )

    def _manage(
        self, living: Sequence[PodFacts], active: Sequence[PodFacts], now_seconds: float
    ) -> Orders:
        if self._is_suspended:
            return Orders(delete=tuple(pod.name for pod in active))
        status = self.status
        wanted = min(int(self.spec.get("parallelism", 1)), self.completions - len(status.succeeded))
        is_late = self._replaces_only_failed
        occupying = living if is_late else active
        taken = {pod.index for pod in occupying} | status.succeeded | status.failed_indexes
        free = [
            index
            for index in range(self.completions)
            if index not in taken and self._not_before.get(index, 0.0) <= now_seconds
        ]
        surplus = [pod for pod in active if pod.index in status.failed_indexes]
        return Orders(
            create=tuple(free[: max(0, wanted - len(occupying))]),
            delete=tuple(pod.name for pod in surplus),
        )

    @property
    def _replaces_only_failed(self) -> bool:
        """A pod that is terminating keeps its index until it has ended."""
        default = "Failed" if self._rules else "TerminatingOrFailed"
        return bool(self.spec.get("podReplacementPolicy", default) == "Failed")


def _check(spec: Mapping[str, Any]) -> None:
    unknown = sorted(spec.keys() - _KNOWN)
    if unknown:
        raise ValueError(f"Job spec: {', '.join(unknown)}: not known to this controller")
    if spec.get("completionMode") != "Indexed" or "completions" not in spec:
        raise ValueError("Job spec: only completionMode Indexed, with completions, is run here")
    has_policy = "podFailurePolicy" in spec
    if has_policy and spec["template"]["spec"].get("restartPolicy") != "Never":
        raise ValueError("Job spec: podFailurePolicy needs restartPolicy Never")
    if has_policy and spec.get("podReplacementPolicy", "Failed") != "Failed":
        raise ValueError("Job spec: podFailurePolicy needs podReplacementPolicy Failed")
    if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        raise ValueError("Job spec: maxFailedIndexes needs backoffLimitPerIndex")
    if spec.get("maxFailedIndexes", 0) > spec["completions"]:
        raise ValueError("Job spec: maxFailedIndexes must not be above completions")


def _is_met(rule: Mapping[str, Any], succeeded: set[int]) -> bool:
    count = rule.get("succeededCount")
    if "succeededIndexes" not in rule:
        return bool(succeeded) and count is not None and len(succeeded) >= count
    required = parse_indexes(rule["succeededIndexes"])
    reached = len(required & succeeded)
    return reached == len(required) or (count is not None and reached >= count)


def parse_indexes(text: str) -> set[int]:
    """The numbers of ``0,2-4``."""
    numbers: set[int] = set()
    for part in str(text).split(","):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def _final(ending: Condition) -> Condition:
    kind = "Complete" if ending.type == "SuccessCriteriaMet" else "Failed"
    return Condition(kind, ending.reason, ending.message)
