"""What a Job must say so that a preempted node is replaced, and a hopeless job ends."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from keepstep.errors import FINAL_CODES, ExitCode
from keepstep.k8s.failure_policy import Action, Rule, verdict_on
from keepstep.k8s.manifest import Finding, at, items
from keepstep.k8s.workload import Workload

STOP_CODES = FINAL_CODES - {ExitCode.STORAGE_UNAVAILABLE, ExitCode.DEVICE, ExitCode.FENCED}
"""After which the Job is to fail.

A store may be back later, another machine's GPUs may work, a fenced node may join the others.
"""
UNCOUNTED_CODES = frozenset({ExitCode.PREEMPTED, ExitCode.PREEMPTED_UNSAVED, ExitCode.FENCED})

_BROKEN_CODES = (1, 137, 143)
"""Of a program that breaks, and of one that is killed."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A pod, as it may be found."""

    name: str
    exit_codes: Mapping[str, int]
    conditions: Mapping[str, str]


def restart_policy(workload: Workload) -> Iterator[Finding]:
    """A kubelet that restarts the container would do so without asking the failure policy."""
    policy = workload.pod.get("restartPolicy")
    if workload.is_job and policy != "Never":
        yield workload.of_pod("restartPolicy", f"is {policy}", "write Never: the Job replaces pods")


def indexed(workload: Workload) -> Iterator[Finding]:
    mode = workload.spec.get("completionMode")
    if workload.is_job and mode != "Indexed":
        yield workload.of_job(
            "completionMode",
            f"is {mode or 'NonIndexed'}",
            "write Indexed: pods keep their names, and limits are those of an index",
        )


def sizes(workload: Workload) -> Iterator[Finding]:
    """One pod is one node."""
    if not workload.is_job or (nodes := workload.nodes) is None:
        return
    least, most = nodes
    # Above ``least``, the API server would refuse a job of so few: shrunk, or partially admitted.
    spare = min(most - least, least)
    wanted = {"completions": most, "parallelism": most, "maxFailedIndexes": spare}
    for field, number in wanted.items():
        if (found := workload.spec.get(field)) != number:
            wrong = f"is {found}, with --nnodes={least}:{most}"
            yield workload.of_job(field, wrong, f"write {number}")


def node_count(workload: Workload) -> Iterator[Finding]:
    nodes = workload.nodes
    if nodes is None:
        wrong = f"--nnodes is {workload.option('--nnodes')}"
        yield workload.of_container("args", wrong, "write --nnodes=MIN:MAX")
    elif not 1 <= nodes[0] <= nodes[1]:
        wrong = f"--nnodes={nodes[0]}:{nodes[1]} allows no number of nodes"
        yield workload.of_container("args", wrong, "the least must not be above the most")


def replacement(workload: Workload) -> Iterator[Finding]:
    policy = workload.spec.get("podReplacementPolicy")
    if workload.is_job and policy != "Failed":
        yield workload.of_job(
            "podReplacementPolicy",
            f"is {policy or 'TerminatingOrFailed'}",
            "write Failed: two pods of one index would fight for its place",
        )


def retries(workload: Workload) -> Iterator[Finding]:
    limit = workload.spec.get("backoffLimitPerIndex")
    if workload.is_job and not limit:
        yield workload.of_job(
            "backoffLimitPerIndex",
            f"is {limit}: six failures of all nodes together would end the job",
            "write a number, such as 100: keepstep run ends hopeless jobs by itself",
        )


def success(workload: Workload) -> Iterator[Finding]:
    rules = items(workload.spec, "successPolicy.rules")
    if workload.is_job and not any(rule.get("succeededCount") == 1 for rule in rules):
        yield workload.of_job(
            "successPolicy",
            "does not end the job when one pod has succeeded: the others would be replaced",
            "write rules: [{succeededCount: 1}]; a pod ends with 0 after the last commit only",
        )


def failure_rules(workload: Workload) -> Iterator[Finding]:
    """Exit codes as docs/errors.md has them. Of several rules that match, the first decides."""
    if not workload.is_job:
        return
    wanted = {Action.FAIL_JOB: STOP_CODES}
    if _trains(workload):
        wanted |= {Action.IGNORE: UNCOUNTED_CODES, Action.FAIL_INDEX: frozenset()}
    found = {code: _action_after(workload, code) for code in _codes(workload)}
    for action, codes in wanted.items():
        if wrong := _difference({code for code in found if found[code] is action}, codes):
            values = f"write action {action} for values: {sorted(map(int, codes))}"
            yield workload.of_job("podFailurePolicy.rules", f"{action}: {wrong}", values)


def disruption(workload: Workload) -> Iterator[Finding]:
    after = {_action_after(workload, code, "DisruptionTarget") for code in _BROKEN_CODES}
    if workload.is_job and after != {Action.IGNORE}:
        yield workload.of_job(
            "podFailurePolicy.rules",
            "a preempted or evicted pod counts as a failure",
            "add action Ignore, onPodConditions: [{type: DisruptionTarget}], before others",
        )


def rule_containers(workload: Workload) -> Iterator[Finding]:
    names = [container.get("name") for container in items(workload.pod, "containers")]
    for number, rule in enumerate(items(workload.spec, "podFailurePolicy.rules")):
        name = at(rule, "onExitCodes.containerName")
        if name is not None and name not in names:
            field = f"podFailurePolicy.rules.{number}.onExitCodes.containerName"
            yield workload.of_job(field, f"no container is called {name}", f"write {names[0]}")


def deadline(workload: Workload) -> Iterator[Finding]:
    if workload.is_job and not workload.spec.get("activeDeadlineSeconds"):
        yield workload.of_job(
            "activeDeadlineSeconds",
            "is missing: pods that wait for nodes would do so for ever",
            "write how long the job may take at most, such as 7776000",
        )


OF_A_TRAINER = (indexed, sizes, node_count, replacement, retries, success)
OF_ANY = (restart_policy, failure_rules, disruption, rule_containers, deadline)


def _trains(workload: Workload) -> bool:
    return workload.verb == "run"


def _codes(workload: Workload) -> set[int]:
    """keepstep's own, those of what breaks, and all that the rules name."""
    listed = [at(rule, "onExitCodes.values") or [] for rule in _rules(workload)]
    own = {int(code) for code in ExitCode if code}
    return own.union(_BROKEN_CODES, *listed)


def _action_after(workload: Workload, code: int, *conditions: str) -> Action:
    name = str(workload.container.get("name"))
    ended = _Ended(name, {name: code}, dict.fromkeys(conditions, "True"))
    return verdict_on(ended, _rules(workload)).action


def _rules(workload: Workload) -> list[Rule]:
    """Those that a cluster would take."""
    return [one for one in items(workload.spec, "podFailurePolicy.rules") if _is_valid(one)]


def _is_valid(rule: Rule) -> bool:
    codes, patterns = at(rule, "onExitCodes"), items(rule, "onPodConditions")
    asks_codes = isinstance(at(codes, "values"), list) and at(codes, "operator") in ("In", "NotIn")
    asks_conditions = codes is None and all("type" in pattern for pattern in patterns)
    return rule.get("action") in list(Action) and (asks_codes or asks_conditions)


def _difference(found: set[int], wanted: frozenset[ExitCode]) -> str:
    missing = [f"{int(code)} ({code.name})" for code in sorted(wanted - found)]
    more = [str(code) for code in sorted(found - wanted)]
    parts = [f"lacks {', '.join(missing)}"] if missing else []
    return " and ".join([*parts, *([f"should not have {', '.join(more)}"] if more else [])])
