"""``keepstep doctor``: tries out what a run needs of a store; reads what a cluster is told."""

from dataclasses import asdict

from keepstep.cli.output import Flag, UsageError, print_json, print_table
from keepstep.errors import ConfigError, ExitCode
from keepstep.k8s.checkup import check_manifests
from keepstep.k8s.reading import read_manifests
from keepstep.k8s.workload import Cluster
from keepstep.storage.base import Storage
from keepstep.storage.checkup import Finding, check_up, worst_exit_code
from keepstep.storage.opening import open_storage
from keepstep.storage.retrying import RetryPolicy

_IMPATIENT = RetryPolicy(timeout_seconds=10.0)


def doctor(
    uri: str | None = None,
    /,
    *,
    k8s: str | None = None,
    single_writer: Flag = False,
    json: Flag = False,
) -> ExitCode:
    """Try out what a run needs of a store, or look through manifests; exit 78 if it will not do.

    Writes, reads and deletes small objects and one of 32 MiB below probe/, and leaves nothing.
    A store that refuses or does not answer has its own exit code: 77, 69.

    Parameters
    ----------
    uri
        Where a run lives, or is to live: a path, s3://bucket/prefix, or a URI fsspec knows.
    k8s
        Instead of a store, look through manifests for Kubernetes: a directory, which kubectl
        renders if there is a kustomization.yaml in it; a file; or - for stdin.
    single_writer
        Vouch that no two jobs write there at a time, as storage.single_writer does.
    json
        Print JSON.
    """
    if (uri is None) == (k8s is None):
        raise UsageError("doctor takes a URI or --k8s: write one of them")
    if uri is None:
        assert k8s is not None
        return _look_through(k8s, as_json=json)
    storage = open_storage(uri, policy=_IMPATIENT)
    findings = list(check_up(storage, is_single_writer=single_writer))
    code = worst_exit_code(findings)
    if json:
        print_json(_document(storage, findings, code))
    else:
        print(storage.uri)
        print_table([(f.verdict, f.probe, f.sentence) for f in findings])
    return code


def _look_through(source: str, *, as_json: bool) -> ExitCode:
    manifests = read_manifests(source)
    findings = check_manifests(manifests)
    if not Cluster(manifests).workloads:
        raise ConfigError(f"{source}: no pod among {len(manifests)} objects runs keepstep")
    code = ExitCode.CONFIG if findings else ExitCode.OK
    if as_json:
        print_json(
            {"source": source, "exit_code": int(code), "findings": list(map(asdict, findings))}
        )
    else:
        for finding in findings:
            print(finding)
        print(f"{source}: {len(manifests)} objects, {len(findings) or 'no'} findings")
    return code


def _document(storage: Storage, findings: list[Finding], code: ExitCode) -> dict[str, object]:
    probes = [
        {"probe": finding.probe, "verdict": finding.verdict, "sentence": finding.sentence}
        for finding in findings
    ]
    return {"uri": storage.uri, "exit_code": int(code), "probes": probes}
