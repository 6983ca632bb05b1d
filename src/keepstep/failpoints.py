"""Named crash sites: places where a drill makes a process die, stop, stall or fail.

The sites sit in the real code. Disarmed, a site costs one call and one test of a module variable.
Armed by a specification such as ``write.middle=kill@rank:1@step:20``::

    RULES     = RULE {";" RULE}
    RULE      = SITE "=" ACTION {"@" CONDITION}
    ACTION    = "kill" | "stop" | "exit:" CODE | "sleep:" SECONDS | "raise" [":" ERRNO]
              | "loop" | "hold" | "spoil:" NAME
    CONDITION = "rank:" N | "step:" N | "pass:" N | "restart:" (N | "any")

``kill`` and ``stop`` send this process SIGKILL and SIGSTOP; ``raise:ENOSPC`` raises that
``OSError``, ``raise`` alone a :class:`FailpointError`. ``loop`` never ends, nor does ``hold``,
which keeps the interpreter lock. ``spoil`` breaks what was just restored, at the site that says
how. ``pass:3`` is the third time that this process passes the site, under the other conditions. A
rule acts once per process, and unless ``restart`` says otherwise only before the first restart: the
job it killed must be able to recover. Right before it acts it adds a line to the log of what was
done, if there is one.
"""

import ctypes
import errno
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from keepstep.phases import Phase

FAILPOINTS: tuple[str, ...] = (
    *(f"{phase}.{moment}" for phase in Phase for moment in ("before", "after")),
    "write.middle",
    "publish.middle",
    "load.middle",
    "load.after",
    "step.after",
)
"""Every site there is.

``write.middle`` is hit with about half of a rank's bytes in the store, ``publish.middle`` between
the check for a newer generation and the creation of the manifest, ``load.after`` with a checkpoint
restored and proven, before the first step, ``step.after`` after each step, before a save that is
due.
"""

_SPOILABLE = "load.after"
_CONDITIONS = ("rank", "step", "pass", "restart")


class FailpointError(RuntimeError):
    """Raised by the action ``raise``: stands for any unexpected error."""


@dataclass(slots=True)
class _Rule:
    site: str
    action: str
    argument: str
    step: int | None
    passes_left: int
    """Until it acts; not positive once it has."""


@dataclass(frozen=True, slots=True)
class _Log:
    path: Path
    rank: int
    restart_count: int


_armed: list[_Rule] | None = None
_log: _Log | None = None


def arm(specification: str, *, rank: int, restart_count: int, log: Path | None = None) -> None:
    """Arm the rules that apply to this process, replacing what was armed before.

    Each rule that acts adds a line of JSON to ``log``.
    *Ranks:* local.
    *Raises:* ``ValueError`` naming the rule that cannot be read; nothing is armed then.
    """
    global _armed, _log  # noqa: PLW0603  # one table per process is the point
    rules = [
        rule
        for text in specification.split(";")
        if text.strip()
        for rule in [_parse(text.strip(), rank, restart_count)]
        if rule is not None
    ]
    _armed = rules or None
    _log = _Log(log, rank, restart_count) if log else None


def disarm() -> None:
    """Forget every rule."""
    global _armed  # noqa: PLW0603  # one table per process is the point
    _armed = None


def hit(site: str, *, step: int | None = None, spoil: Callable[[str], None] | None = None) -> None:
    """Pass a crash site. Does nothing unless a rule for it is armed.

    Args:
        spoil: What the action ``spoil`` does here, by the name it gives.
    """
    if _armed is None:
        return
    for rule in _armed:
        if rule.site != site or rule.step not in (None, step):
            continue
        rule.passes_left -= 1
        if rule.passes_left == 0:
            if _log is not None:
                _note(_log, rule, step)
            _act(rule, spoil)


def _parse(text: str, rank: int, restart_count: int) -> _Rule | None:
    """The rule, or ``None`` if its conditions exclude this process."""
    site, equals, rest = text.partition("=")
    action_text, *conditions = rest.split("@")
    action, _, argument = action_text.partition(":")
    if not equals or site not in FAILPOINTS:
        msg = f"failpoint rule {text!r}: no site {site!r}; sites: {', '.join(sorted(FAILPOINTS))}"
        raise ValueError(msg)
    _check_action(text, action, argument)
    if action == "spoil" and site != _SPOILABLE:
        raise ValueError(f"failpoint rule {text!r}: spoil acts at {_SPOILABLE} only")
    wanted = {"restart": "0"}
    for condition in conditions:
        name, _, value = condition.partition(":")
        is_any = name == "restart" and value == "any"
        if name not in _CONDITIONS or not (value.isdecimal() or is_any):
            msg = (
                f"failpoint rule {text!r}: cannot read {condition!r}; "
                "conditions: rank:N, step:N, pass:N, restart:N|any"
            )
            raise ValueError(msg)
        wanted[name] = value
    if wanted["restart"] not in ("any", str(restart_count)):
        return None
    if wanted.get("rank", str(rank)) != str(rank):
        return None
    step = int(wanted["step"]) if "step" in wanted else None
    return _Rule(site, action, argument, step, passes_left=int(wanted.get("pass", "1")))


def _check_action(text: str, action: str, argument: str) -> None:
    is_good = {
        "kill": argument == "",
        "stop": argument == "",
        "loop": argument == "",
        "hold": argument == "",
        "exit": argument.isdecimal(),
        "sleep": argument.replace(".", "", 1).isdecimal(),
        "raise": argument == "" or hasattr(errno, argument),
        "spoil": argument != "",
    }.get(action, False)
    if not is_good:
        msg = (
            f"failpoint rule {text!r}: cannot read action {action!r}; "
            "actions: kill, stop, loop, hold, exit:CODE, sleep:SECONDS, raise, raise:ERRNO, "
            "spoil:NAME"
        )
        raise ValueError(msg)


def _note(log: _Log, rule: _Rule, step: int | None) -> None:
    """In one write, so that lines of several ranks do not mix."""
    known: dict[str, object] = {"time": round(time.time(), 3), "rank": log.rank, "step": step}
    known |= {
        "restart": log.restart_count,
        "site": rule.site,
        "action": rule.action,
        "argument": rule.argument,
    }
    line = json.dumps(known) + "\n"
    with log.path.open("ab", buffering=0) as file:
        file.write(line.encode())


def _act(rule: _Rule, spoil: Callable[[str], None] | None) -> None:
    match rule.action:
        case "spoil" if spoil is not None:
            spoil(rule.argument)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "loop":
            while True:
                pass
        case "hold":
            while True:  # a signal ends a pause
                ctypes.PyDLL(None).pause()  # unlike CDLL, it does not let go of the lock
        case "exit":
            os._exit(int(rule.argument))
        case "sleep":
            time.sleep(float(rule.argument))
        case "raise" if rule.argument:
            number = getattr(errno, rule.argument)
            raise OSError(number, os.strerror(number), rule.site)
        case "raise":
            msg = f"failpoint {rule.site}"
            raise FailpointError(msg)
