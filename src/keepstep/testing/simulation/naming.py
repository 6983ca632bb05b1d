"""Plans as text: a seed, and what differs from what the seed draws.

``17`` is what seed 17 draws; ``17:also=kill@57#0`` has one event more; ``17:saves=3,events=`` is
shorter, and nothing happens in it.
"""

from dataclasses import replace

from keepstep.testing.simulation.plan import Event, Kind, Plan, draw_plan


def name_of(plan: Plan) -> str:
    """The shortest text that gives the plan."""
    drawn = draw_plan(plan.seed)
    parts = []
    if plan.saves != drawn.saves:
        parts.append(f"saves={plan.saves}")
    if plan.world_size != drawn.world_size:
        parts.append(f"ranks={plan.world_size}")
    if plan.operations_per_switch != drawn.operations_per_switch:
        parts.append(f"switch={plan.operations_per_switch:g}")
    if plan.schedule:
        parts.append(f"schedule={plan.schedule}")
    if plan.events != drawn.events:
        more = [event for event in plan.events if event not in drawn.events]
        is_more = set(drawn.events) <= set(plan.events)
        parts.append(f"also={_joined(more)}" if is_more else f"events={_joined(plan.events)}")
    return ":".join(filter(None, (str(plan.seed), ",".join(parts))))


def plan_of(name: str) -> Plan:
    """The plan a text stands for. *Raises:* ``ValueError`` if it is none."""
    seed, _, parts = name.partition(":")
    plan = draw_plan(int(seed))
    for part in filter(None, parts.split(",")):
        setting, _, value = part.partition("=")
        match setting:
            case "saves":
                plan = replace(plan, saves=int(value))
            case "ranks":
                plan = replace(plan, world_size=int(value))
            case "switch":
                plan = replace(plan, operations_per_switch=float(value))
            case "schedule":
                plan = replace(plan, schedule=int(value))
            case "events":
                plan = replace(plan, events=_events(value))
            case "also":
                plan = replace(plan, events=tuple(sorted((*plan.events, *_events(value)))))
            case _:
                msg = f"{name!r}: there is no setting {setting!r}"
                raise ValueError(msg)
    return plan


def _joined(events: "list[Event] | tuple[Event, ...]") -> str:
    return "+".join(f"{e.kind.replace(' ', '-')}@{e.at}#{e.number}" for e in events)


def _events(text: str) -> tuple[Event, ...]:
    events = []
    for part in filter(None, text.split("+")):
        kind, _, rest = part.partition("@")
        at, _, number = rest.partition("#")
        events.append(Event(int(at), Kind(kind.replace("-", " ")), int(number or 0)))
    return tuple(sorted(events))
