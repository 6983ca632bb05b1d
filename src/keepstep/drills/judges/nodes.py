"""Judges of jobs whose nodes come and go: who formed a world, who was told, who was blamed."""

from collections.abc import Mapping
from typing import Any

from keepstep.drills.evidence import Evidence
from keepstep.drills.judges.table import Judges
from keepstep.drills.verdicts import Objection


def undisturbed(evidence: Evidence) -> str:
    """What happened interrupted nobody: there was one start."""
    starts = evidence.history.starts
    if len(starts) != 1:
        raise Objection(f"there were {len(starts)} starts, though nothing called for a second")
    return f"one start, {len(evidence.history.steps)} steps"


def trained_without_store(evidence: Evidence) -> str:
    """Steps were made while there was no rendezvous store."""
    killed = [i.time for i in evidence.injections if i.kind == "kill store"]
    back = [i.time for i in evidence.injections if i.kind == "start store"]
    if not killed:
        raise Objection("the store was never away")
    until = back[0] if back else float("inf")
    steps = {
        event["step"]
        for event in evidence.events
        if event["event"] == "samples" and killed[0] < event["time"] < until
    }
    if not steps:
        raise Objection("no step was made while the store was away")
    return f"steps {min(steps)} to {max(steps)} without a store"


def worlds_as_planned(evidence: Evidence) -> str:
    """Each change of the nodes cost one start, of as many ranks as there were nodes."""
    worlds = [start.world_size for start in evidence.history.starts]
    if worlds != (planned := evidence.notes.get("worlds")):
        raise Objection(f"the worlds were {worlds}, not {planned}")
    return " -> ".join(map(str, worlds))


def never_undersized(evidence: Evidence) -> str:
    """No start had fewer ranks than the job was told to wait for."""
    least = evidence.notes.get("least_ranks", 1)
    for start in evidence.history.starts:
        if start.world_size < least:
            raise Objection(
                f"generation {start.generation} started with {start.world_size} ranks, fewer than "
                f"{least}"
            )
    if not evidence.history.starts:
        raise Objection("nothing has started")
    return f"never fewer than {least} ranks"


def left_without_loss(evidence: Evidence) -> str:
    """Who was told to go left at one step on all ranks, and it was committed."""
    shown = []
    for generation, stops in _stops(evidence).items():
        start = next(s for s in evidence.history.starts if s.generation == generation)
        if len(stops) != start.world_size:
            raise Objection(
                f"{len(stops)} of {start.world_size} ranks of generation {generation} say that "
                "they left"
            )
        seen = {(stop["step"], stop["committed_step"]) for stop in stops}
        if len(seen) != 1:
            raise Objection(f"ranks left at different (step, committed step): {sorted(seen)}")
        ((step, committed_step),) = seen
        if step != committed_step or not _is_committed(evidence, step, generation):
            raise Objection(f"ranks left at step {step}, but committed is {committed_step}")
        shown.append(f"{len(stops)} ranks of generation {generation} at step {step}")
    return f"left and committed: {', '.join(shown)}"


def loss_is_told(evidence: Evidence) -> str:
    """Who had no time to save says what that costs, and others go on from what was committed."""
    shown = []
    for generation, stops in _stops(evidence).items():
        following = [s for s in evidence.history.starts if s.generation > generation]
        resumed = following[0].resumed_from if following else None
        for stop in stops:
            lost = stop["step"] - stop["committed_step"]
            if stop["lost_steps"] != lost or lost <= 0:
                raise Objection(f"rank {stop['rank']} tells of {stop['lost_steps']} lost steps")
            if resumed is None or resumed.step < stop["committed_step"]:
                raise Objection(
                    f"the successor resumed from {resumed}, before step {stop['committed_step']}"
                )
        shown.append(f"{stops[0]['lost_steps']} steps of generation {generation}")
    return f"lost and told: {', '.join(shown)}"


def others_not_charged(evidence: Evidence) -> str:
    """Nodes that nothing befell have used up no try."""
    befallen = {str(node) for node in evidence.notes.get("befallen", ())}
    if not befallen:
        raise Objection("nothing befell any node")
    for node, failure in _failures(evidence).items():
        charged = [r for r in failure["restarts"] if r["counted"]]
        if node not in befallen and (charged or failure["decision"]):
            raise Objection(f"node {node} was charged: {failure['decision']}")
    return f"only node {', '.join(sorted(befallen))} had anything to answer for"


def hang_is_named(evidence: Evidence) -> str:
    """The launcher of the rank that hung names it, and where it was; nobody else is blamed."""
    hung = {
        node: failure["first"]
        for node, failure in _failures(evidence).items()
        if failure["first"]["is_stopped"]
        or (failure["first"]["is_overdue"] and not failure["first"]["is_waiting"])
    }
    named = {node: first["rank"] for node, first in hung.items()}
    culprits = {str(node): rank for node, rank in evidence.notes.get("culprits", ())}
    if named != culprits or not culprits:
        raise Objection(f"by node, ranks {named} are said to hang, but it was {culprits}")
    for node, first in hung.items():
        stacks = evidence.notes.get("stacks", {}).get(node, "")
        if not first["is_stopped"] and "File " not in stacks:
            raise Objection(f"rank {first['rank']} hung, and there is no stack of it")
    return "; ".join(f"rank {first['rank']} {first['what']}" for first in hung.values())


def died_with_agent(evidence: Evidence) -> str:
    """No process outlived the agent that was killed."""
    outlived = evidence.notes.get("outlived", ())
    if not outlived:
        raise Objection("no agent was killed")
    for each in outlived:
        if each["processes"]:
            raise Objection(f"{each['processes']} processes of node {each['node']} live on")
    return f"nothing is left of {len(outlived)} killed agents"


def gave_up_for_a_reason(evidence: Evidence) -> str:
    """A launcher that gave up says how often it tried, and what went wrong in the end."""
    given_up = {
        node: failure
        for node, failure in _failures(evidence).items()
        if "tries in a row have committed nothing" in failure["decision"]
    }
    if not given_up:
        raise Objection("no launcher gave up")
    causes = {e["cause"] for e in evidence.events if e["event"] == "generation" and e.get("cause")}
    for node, failure in given_up.items():
        error = failure["first"]["error"]
        if not error:
            raise Objection(f"node {node} gave up, and does not say why")
        counted = sum(r["counted"] for r in failure["restarts"])
        if counted < 2:
            raise Objection(f"node {node} gave up after {counted + 1} tries")
    shown = "; ".join(f"node {n}: {f['first']['what']}" for n, f in given_up.items())
    return f"{shown}; the ledger tells {len(causes)} causes"


def _stops(evidence: Evidence) -> Mapping[int, list[Mapping[str, Any]]]:
    """By generation, what ranks that were told to go wrote down.

    *Raises:* ``Objection`` if there were none.
    """
    stops: dict[int, list[Mapping[str, Any]]] = {}
    for event in evidence.events:
        if event["event"] == "stop" and event.get("is_preempted"):
            stops.setdefault(event["generation"], []).append(event)
    if not stops:
        raise Objection("no rank says that it was told to go")
    return stops


def _is_committed(evidence: Evidence, step: int, generation: int) -> bool:
    return any(
        c.id.step == step and c.id.generation == generation for c in evidence.history.committed
    )


def _failures(evidence: Evidence) -> Mapping[str, Mapping[str, Any]]:
    """By node, what its launcher wrote of its last failure."""
    failures: Mapping[str, Mapping[str, Any]] = evidence.notes.get("failures", {})
    return failures


JUDGES: Judges = {
    "died_with_agent": ("I8", died_with_agent),
    "gave_up_for_a_reason": ("I8", gave_up_for_a_reason),
    "hang_is_named": ("I8", hang_is_named),
    "left_without_loss": ("I8", left_without_loss),
    "loss_is_told": ("I8", loss_is_told),
    "never_undersized": ("I8", never_undersized),
    "others_not_charged": ("I8", others_not_charged),
    "trained_without_store": ("I8", trained_without_store),
    "undisturbed": ("I8", undisturbed),
    "worlds_as_planned": ("I8", worlds_as_planned),
}
