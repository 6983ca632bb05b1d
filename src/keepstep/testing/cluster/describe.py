"""A pod in words, as ``kubectl describe pod`` has it."""

from keepstep.testing.cluster.container import Container, Termination
from keepstep.testing.cluster.events import Events
from keepstep.testing.cluster.pod import Pod


def described(pod: Pod, events: Events, now_seconds: float) -> str:
    identity = pod.identity
    status = "Terminating" if pod.is_terminating and not pod.phase.is_final else pod.phase.value
    lines = [
        f"Name:           {pod.name}",
        f"Node:           {identity.node_name}",
        f"Labels:         {' '.join(f'{k}={v}' for k, v in sorted(identity.labels.items()))}",
        f"Status:         {status}",
        *([f"Reason:         {pod.reason}"] if pod.reason else []),
        f"IP:             {identity.address}",
        f"Controlled By:  {identity.owner}",
        "Containers:",
    ]
    for container in (*pod.init_containers, *pod.containers):
        lines += _container(container, now_seconds)
    lines.append("Conditions:")
    lines.append(f"  Ready             {pod.is_ready}")
    for kind, condition in pod.conditions.items():
        lines.append(f"  {kind:<16}  True  {condition.reason}: {condition.message}")
    lines.append("Events:")
    lines += [f"  {event}" for event in events.of(f"Pod/{pod.name}")]
    return "\n".join(lines) + "\n"


def _container(container: Container, now_seconds: float) -> list[str]:
    lines = [f"  {container.name}:"]
    if container.is_running:
        age = now_seconds - container.started_seconds
        lines += ["    State:          Running", f"      Started:      {age:.0f} s ago"]
    elif container.termination is not None:
        lines += _termination("State:     ", container.termination)
    else:
        lines.append("    State:          Waiting")
    if container.last_termination is not None:
        lines += _termination("Last State:", container.last_termination)
    lines.append(f"    Ready:          {container.is_ready}")
    lines.append(f"    Restart Count:  {container.restarts}")
    return lines


def _termination(label: str, end: Termination) -> list[str]:
    lines = [f"    {label}     Terminated", f"      Reason:       {end.reason}"]
    if end.message:
        first, *rest = end.message.strip().splitlines() or [""]
        lines.append(f"      Message:      {first}")
        lines += [f"                    {line}" for line in rest]
    took = end.finished_seconds - end.started_seconds
    return [*lines, f"      Exit Code:    {end.exit_code}", f"      Ran for:      {took:.1f} s"]
