"""A node: where pods run, and all the ways in which it can go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keepstep.testing.cluster.manifests import Manifest


@dataclass(slots=True)
class Node:
    """A virtual machine and the object that stands for it."""

    name: str
    pool: str
    silent_since_seconds: float | None = None
    """Powered off, or cut off."""
    not_ready_since_seconds: float | None = None
    """Since the control plane has noticed."""
    shuts_down_at_seconds: float | None = None
    """A notice was given: no new pods, and the end comes then."""
    is_gone: bool = False
    """There is no such node any more."""

    @property
    def takes_pods(self) -> bool:
        is_going = self.shuts_down_at_seconds is not None or self.silent_since_seconds is not None
        return not self.is_gone and not is_going


@dataclass(frozen=True, slots=True)
class Pool:
    """Nodes of one kind. There are more of them, at once, when a pod finds no place."""

    name: str
    nodes: int
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Mapping[str, str]] = ()


def fits(labels: Mapping[str, str], taints: Sequence[Mapping[str, str]], spec: Manifest) -> bool:
    """Whether a pod may run there: its selector, required affinity and tolerations."""
    selector = spec.get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return False
    hard = [taint for taint in taints if taint["effect"] in ("NoSchedule", "NoExecute")]
    if not all(_is_tolerated(taint, spec.get("tolerations", [])) for taint in hard):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(
        all(_matches(labels, expression) for expression in term["matchExpressions"])
        for term in required["nodeSelectorTerms"]
        if term.get("matchExpressions")  # an empty term matches no node
    )


def toleration_seconds(spec: Manifest, taint_key: str) -> float | None:
    """How long a pod stays on a node with this NoExecute taint; none: for ever."""
    default = 300.0  # added to every pod by the DefaultTolerationSeconds admission plugin
    taint = {"key": taint_key, "effect": "NoExecute"}
    for toleration in spec.get("tolerations", []):
        if _is_tolerated(taint, [toleration]):
            seconds = toleration.get("tolerationSeconds")
            return None if seconds is None else float(seconds)
    return default


def _is_tolerated(taint: Mapping[str, str], tolerations: Sequence[Manifest]) -> bool:
    return any(
        toleration.get("effect") in (None, "", taint["effect"])
        and (
            (
                toleration.get("operator") == "Exists"
                and toleration.get("key") in (None, taint["key"])
            )
            or (
                toleration.get("key") == taint["key"]
                and toleration.get("value", "") == taint.get("value", "")
            )
        )
        for toleration in tolerations
    )


def _matches(labels: Mapping[str, str], expression: Mapping[str, Any]) -> bool:
    """*Raises:* ``ValueError`` for an operator that is not known here."""
    value, values = labels.get(expression["key"]), expression.get("values", [])
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case other:
            raise ValueError(f"node affinity: operator {other!r} is not known to this cluster")
