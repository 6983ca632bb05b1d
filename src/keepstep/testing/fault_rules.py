"""Which request meets which fault, and the log of both."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from keepstep.testing.faults import Fault


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it reached the proxy, and the fault that it met."""

    method: str
    target: str
    """Path and query, as sent."""
    headers: Mapping[str, str] = field(repr=False)
    """By lower-case name. They hold a signature, never a key."""
    fault: Fault | None = None

    @property
    def path(self) -> str:
        """``/bucket/key``, unquoted."""
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]


@dataclass(frozen=True, slots=True)
class Condition:
    """What a request must look like; ``None`` takes any."""

    method: str | None = None
    path: str | None = None
    query: str | None = None
    header: str | None = None

    def holds(self, request: Request) -> bool:
        return (
            (self.method is None or self.method == request.method)
            and (self.path is None or self.path in request.path)
            and (self.query is None or self.query in request.query)
            and (self.header is None or _has_header(request.headers, self.header))
        )


class Rule:
    """A fault for the requests that meet a condition: not the first ``after``, then ``times``."""

    def __init__(self, fault: Fault, condition: Condition, after: int, times: int | None) -> None:
        self.fault = fault
        self.condition = condition
        self._to_skip = after
        self._times = times
        self._hits = 0
        self._was_hit = threading.Event()

    @property
    def hits(self) -> int:
        """Requests that met the fault."""
        return self._hits

    def wait(self, timeout_seconds: float = 30.0) -> None:
        """*Blocks:* until a request has met the fault. *Raises:* ``TimeoutError``."""
        if not self._was_hit.wait(timeout_seconds):
            raise TimeoutError(f"within {timeout_seconds} s no request met {self!r}")

    def strikes(self, request: Request) -> bool:
        """Count the request; whether this is one that meets the fault."""
        if not self.condition.holds(request) or self._hits == self._times:
            return False
        if self._to_skip:
            self._to_skip -= 1
            return False
        self._hits += 1
        self._was_hit.set()
        return True

    def __repr__(self) -> str:
        return f"Rule({self.fault}, {self.condition}, hits={self._hits})"


class RuleBook:
    """Rules in the order they were added, of which the first that strikes counts. Thread-safe."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._requests: list[Request] = []
        self._lock = threading.Lock()

    @property
    def requests(self) -> list[Request]:
        """A copy of the log."""
        with self._lock:
            return list(self._requests)

    def add(self, rule: Rule) -> None:
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        """Forget rules and log."""
        with self._lock:
            self._rules.clear()
            self._requests.clear()

    def judge(self, method: str, target: str, headers: Mapping[str, str]) -> Fault | None:
        """The fault this request meets, if any; both go to the log."""
        request = Request(method, target, headers)
        with self._lock:
            rule = next((rule for rule in self._rules if rule.strikes(request)), None)
            fault = None if rule is None else rule.fault
            self._requests.append(Request(method, target, headers, fault))
        return fault


def _has_header(headers: Mapping[str, str], wanted: str) -> bool:
    """``wanted`` is a name, or ``name: part of its value``."""
    name, _, value = wanted.partition(":")
    return value.strip() in headers.get(name.lower(), "") if name.lower() in headers else False
