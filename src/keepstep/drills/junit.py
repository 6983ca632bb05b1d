"""Drills in the format of JUnit, which continuous integration reads."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement

from keepstep.drills.record import Record


def write_junit(records: Sequence[Record], path: Path) -> None:
    """One suite; a case for each drill."""
    outcomes = [record.outcome for record in records]
    counts = {
        "tests": str(len(records)),
        "failures": str(outcomes.count("FAIL")),
        "errors": "0",
        "skipped": str(outcomes.count("SKIP")),
        "time": f"{sum(record.seconds for record in records):.3f}",
    }
    suites = Element("testsuites", counts)
    suite = SubElement(suites, "testsuite", {"name": "keepstep drills", **counts})
    for record in records:
        _add_case(suite, record)
    ElementTree(suites).write(path, encoding="us-ascii", xml_declaration=True)


def _add_case(suite: Element, record: Record) -> None:
    name, family = record.name, f"keepstep.drills.{record.drill.family}"
    case = SubElement(
        suite, "testcase", {"name": name, "classname": family, "time": f"{record.seconds:.3f}"}
    )
    if record.skipped is not None:
        SubElement(case, "skipped", {"message": _plain(record.skipped)})
    if record.broken_off is not None:
        SubElement(case, "failure", {"message": _plain(f"broken off: {record.broken_off}")})
    for verdict in record.verdicts:
        if not verdict.is_good:
            message = _plain(f"{verdict.invariant} {verdict.judge}: {verdict.evidence}")
            SubElement(case, "failure", {"message": message, "type": verdict.invariant})


def _plain(text: str) -> str:
    """Without characters that XML has no place for."""
    return "".join(letter if letter >= " " or letter in "\n\t" else "?" for letter in text)
