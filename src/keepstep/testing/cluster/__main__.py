"""``python -m keepstep.testing.cluster apply FILE...``: run rendered manifests, for people.

Prints events as they come, and in the end what became of each Job. Lines typed meanwhile are
orders: ``preempt NODE [SECONDS]``, ``poweroff NODE``, ``evict POD``, ``delete POD``, ``describe
POD``, ``logs POD``, ``pods``. A pod may be called by the beginning of its name.
"""

# ruff: noqa: T201  # a command line prints

import argparse
import os
import select
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from keepstep.testing.cluster.cluster import SPOT_LABELS, Cluster
from keepstep.testing.cluster.manifests import read_manifests
from keepstep.testing.cluster.node import Pool
from keepstep.testing.cluster.node_controller import Times
from keepstep.testing.cluster.pod import Pod


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all Jobs are complete, 1 when one has failed."""
    options = _parser().parse_args(arguments)
    manifests = read_manifests(*options.files)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="keepstep-cluster-"))
    pools = (Pool("spot", options.nodes, SPOT_LABELS), Pool("stable", 1))
    times = Times(seconds_scale=options.scale)
    environ = dict(each.split("=", 1) for each in options.env)
    with Cluster(manifests, directory, pools=pools, times=times, environ=environ) as cluster:
        for left_out in manifests.left_out:
            print(f"not run here: {left_out}")
        for server in options.expose:
            _expose(cluster, server)
        print(f"logs and volumes: {directory}", flush=True)
        return _run(cluster)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m keepstep.testing.cluster")
    apply = parser.add_subparsers(required=True).add_parser("apply", help="run manifests")
    apply.add_argument("files", nargs="+", type=Path, metavar="FILE", help="rendered manifests")
    apply.add_argument("--nodes", type=int, default=4, help="preemptible nodes; one other is there")
    apply.add_argument("--scale", type=float, default=1.0, help="0.1: controllers wait a tenth")
    apply.add_argument("--directory", type=Path, help="for logs and volumes; default: a new one")
    apply.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="as if set by the image"
    )
    apply.add_argument(
        "--expose",
        action="append",
        default=[],
        metavar="NAME:PORT=HOST:PORT",
        help="a server of this machine, by the name and port that pods know",
    )
    return parser


def _expose(cluster: Cluster, server: str) -> None:
    known_as, _, target = server.partition("=")
    name, _, port = known_as.rpartition(":")
    host, _, target_port = target.rpartition(":")
    cluster.expose((host, int(target_port)), name, int(port))


def _run(cluster: Cluster) -> int:
    told = 0
    jobs = list(cluster.jobs)
    while not jobs or any(cluster.job_status(name).final is None for name in jobs):
        cluster.step()
        for event in cluster.events.all[told:]:
            print(event, flush=True)
        told = len(cluster.events.all)
        line = _typed_line()
        if line:
            _obey(cluster, line.split())
        time.sleep(0.03)
    finals = [cluster.job_status(name).final for name in jobs]
    for name, final in zip(jobs, finals, strict=True):
        print(f"job {name}: {final.type if final else ''} {final.reason if final else ''}")
    return 0 if all(final is not None and final.type == "Complete" for final in finals) else 1


def _typed_line() -> str:
    """What has been typed, if anything; nothing is waited for."""
    if not sys.stdin.isatty() or not select.select([sys.stdin], [], [], 0)[0]:
        return ""
    return os.read(sys.stdin.fileno(), 4096).decode(errors="replace").strip()


def _obey(cluster: Cluster, words: list[str]) -> None:
    verb, *rest = words
    try:
        match verb:
            case "preempt":
                cluster.preempt(rest[0], float(rest[1]) if len(rest) > 1 else 15.0)
            case "poweroff":
                cluster.power_off(rest[0])
            case "evict":
                cluster.evict(_pod(cluster, rest[0]))
            case "delete":
                cluster.delete(_pod(cluster, rest[0]))
            case "describe":
                print(cluster.describe(_pod(cluster, rest[0])))
            case "logs":
                print(cluster.log(_pod(cluster, rest[0])))
            case "pods":
                for pod in cluster.pods:
                    print(f"{pod.name}  {pod.phase}  {pod.identity.node_name}")
            case _:
                print(__doc__)
    except (LookupError, ValueError) as error:
        print(f"{' '.join(words)}: {error}")


def _pod(cluster: Cluster, name: str) -> Pod:
    """The newest whose name begins so. *Raises:* ``LookupError``."""
    found = [pod for pod in cluster.pods if pod.name.startswith(name)]
    if not found:
        raise LookupError(f"no pod {name!r}")
    return found[-1]


if __name__ == "__main__":
    sys.exit(main())
