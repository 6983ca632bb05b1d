"""``keepstep doctor``: tries out what a run needs of a store."""

from keepstep.cli.output import Flag, print_json, print_table
from keepstep.errors import ExitCode
from keepstep.storage.base import Storage
from keepstep.storage.checkup import Finding, check_up, worst_exit_code
from keepstep.storage.opening import open_storage
from keepstep.storage.retrying import RetryPolicy

_IMPATIENT = RetryPolicy(timeout_seconds=10.0)


def doctor(uri: str, /, *, single_writer: Flag = False, json: Flag = False) -> ExitCode:
    """Try out what a run needs of a store; exit 78 if it will not do.

    Writes, reads and deletes small objects and one of 32 MiB below probe/, and leaves nothing.
    A store that refuses or does not answer has its own exit code: 77, 69.

    Parameters
    ----------
    uri
        Where a run lives, or is to live: a path, s3://bucket/prefix, or a URI fsspec knows.
    single_writer
        Vouch that no two jobs write there at a time, as storage.single_writer does.
    json
        Print JSON.
    """
    storage = open_storage(uri, policy=_IMPATIENT)
    findings = list(check_up(storage, is_single_writer=single_writer))
    code = worst_exit_code(findings)
    if json:
        print_json(_document(storage, findings, code))
    else:
        print(storage.uri)
        print_table([(f.verdict, f.probe, f.sentence) for f in findings])
    return code


def _document(storage: Storage, findings: list[Finding], code: ExitCode) -> dict[str, object]:
    probes = [
        {"probe": finding.probe, "verdict": finding.verdict, "sentence": finding.sentence}
        for finding in findings
    ]
    return {"uri": storage.uri, "exit_code": int(code), "probes": probes}
