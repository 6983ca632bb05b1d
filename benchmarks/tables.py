"""Results as Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.results import Entry, Results
from benchmarks.scenario import Scenario, Section
from benchmarks.verdicts import Verdict

_MIB = 1 << 20
_NONE = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """One metric of one kind of work."""

    title: str
    work: str
    metric: str
    show: Callable[[float], str] = lambda value: f"{value:.3g}"
    is_compared: bool = False
    """Say how many times the reference's figure it is."""
    from_first: bool = False
    """The repetition that does not count, instead of the median."""


def _mib(value: float) -> str:
    return f"{value / _MIB:.0f}"


_LOAD = (
    Column("load cold s", "load cold", "seconds", is_compared=True),
    Column("load warm s", "load warm", "seconds", is_compared=True),
    Column("load CPU s/GB", "load warm", "cpu_seconds_per_gb"),
    Column("load extra MiB", "load warm", "extra_bytes", _mib),
    Column("read / needed", "load warm", "read_ratio"),
    Column("copies read", "load warm", "read_copies"),
)
_COLUMNS: dict[Section, tuple[Column, ...]] = {
    "durable": (
        Column("save s", "save", "seconds", is_compared=True),
        Column("GB/s", "save", "gb_per_second"),
        Column("CPU s/GB", "save", "cpu_seconds_per_gb"),
        Column("extra MiB", "save", "extra_bytes", _mib),
        Column("extra device MiB", "save", "device_extra_bytes", _mib),
        Column("written max/mean", "save", "imbalance"),
        Column("plan s, first", "save", "plan_seconds", from_first=True),
        Column("plan s, later", "save", "plan_seconds"),
        *_LOAD,
    ),
    "background": (
        Column("stall s", "async save", "stall_seconds", is_compared=True),
        Column("durable after s", "async save", "seconds", is_compared=True),
        Column("step slower x", "async save", "slowdown"),
        Column("training lost s", "async save", "lost_seconds"),
        Column("CPU s/GB", "async save", "cpu_seconds_per_gb"),
        Column("fresh MiB in stall", "async save", "stall_faulted_bytes", _mib),
        Column("extra MiB", "async save", "extra_bytes", _mib),
        Column("extra device MiB", "async save", "device_extra_bytes", _mib),
    ),
    "reshard": _LOAD,
    "slice": _LOAD,
    "remote": (
        Column("save s", "save", "seconds", is_compared=True),
        Column("save MB/s", "save", "gb_per_second", lambda value: f"{1000 * value:.0f}"),
        Column("save CPU s/GB", "save", "cpu_seconds_per_gb"),
        Column("save extra MiB", "save", "extra_bytes", _mib),
        Column("written max/mean", "save", "imbalance"),
        Column("load s", "load", "seconds", is_compared=True),
        Column("load CPU s/GB", "load", "cpu_seconds_per_gb"),
        Column("load extra MiB", "load", "extra_bytes", _mib),
    ),
    "soak": (
        Column("saves", "soak", "saves"),
        *(
            Column(f"{title} {when}", "soak", metric, show, from_first=when == "first")
            for title, metric, show in (
                ("resident MiB", "resident_bytes", _mib),
                ("open files", "file_descriptors", lambda value: f"{value:.0f}"),
                ("threads", "threads", lambda value: f"{value:.0f}"),
                ("shared MiB", "shared_memory_bytes", _mib),
            )
            for when in ("first", "median")
        ),
    ),
    "transfer": tuple(
        Column(
            f"{size} MiB {way} GB/s", f"copy {size} MiB", f"{way.replace(' ', '_')}_gb_per_second"
        )
        for size in (1, 16, 256)
        for way in ("to pinned", "to pageable", "from pinned", "from pageable")
    ),
}
_REFERENCES: dict[Section, str] = {
    "background": "dcp-async-default",
    "remote": "dcp-s3fs",
}


def render(results: Results) -> str:
    """A table for every scenario, and what has no figures with the reason."""
    parts = [_machine_line(results)]
    parts += [_table(results, scenario) for scenario in results.scenarios()]
    if results.problems:
        lines = [
            f"- {problem.scenario.title}: {problem.peer or 'the whole launch'}: {problem.reason}"
            for problem in results.problems
        ]
        parts.append("Without (further) figures:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def render_claims(verdicts: Sequence[Verdict]) -> str:
    """Each claim with its worst figure: the one that decides."""
    rows = [_claim_row(verdict) for verdict in verdicts]
    return _markdown(("claim", "target", "measured", "where it is worst", "answer"), rows)


def _claim_row(verdict: Verdict) -> list[str]:
    target = f"{verdict.bound} {verdict.target:g}{verdict.unit}"
    if verdict.worst is None:
        return [verdict.text, target, _NONE, _NONE, verdict.answer]
    measured = f"{verdict.worst.value:.3g}{verdict.unit}"
    return [verdict.text, target, measured, verdict.worst.where, verdict.answer]


def _machine_line(results: Results) -> str:
    shown = ("cores", "memory_gib", "filesystem", "python", "torch", "gpu", "commit")
    facts = [f"{name} {results.machine.get(name)}" for name in shown]
    facts.append(
        f"load average {results.machine.get('load_average_start')} at the start, "
        f"{results.machine.get('load_average_end')} at the end"
    )
    return "Measured on: " + ", ".join(facts) + "."


def _table(results: Results, scenario: Scenario) -> str:
    entries = [entry for entry in results.entries if entry.scenario == scenario]
    peers = list(dict.fromkeys(entry.peer for entry in entries))
    reference = _REFERENCES.get(scenario.section, "dcp")
    columns = [
        column
        for column in _COLUMNS[scenario.section]
        if any(e.work == column.work and column.metric in e.metrics for e in entries)
    ]
    rows = [
        [peer, *(_cell(results, scenario, peer, column, reference) for column in columns)]
        for peer in peers
    ]
    heading = f"**{scenario.title}** (in brackets: times {reference}'s figure)"
    if reference not in peers:
        heading = f"**{scenario.title}**"
    return heading + "\n\n" + _markdown(["peer", *(column.title for column in columns)], rows)


def _cell(results: Results, scenario: Scenario, peer: str, column: Column, reference: str) -> str:
    value = _value(results.entry(scenario, peer, column.work), column)
    if value is None:
        return _NONE
    shown = column.show(value)
    base = _value(results.entry(scenario, reference, column.work), column)
    return f"{shown} ({value / base:.2f})" if column.is_compared and base else shown


def _value(entry: Entry | None, column: Column) -> float | None:
    spread = entry.metrics.get(column.metric) if entry else None
    if spread is None:
        return None
    return spread.first if column.from_first else spread.median


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
