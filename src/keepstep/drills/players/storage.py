"""Storage of a drill's own, a disk or an S3 server, and what goes wrong there.

When the drill is over, the run is copied to where it would have been, with the storage gone.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from keepstep.drills.inject import copy_objects
from keepstep.drills.stage import Stage
from keepstep.drills.storage_acts import Distort, Distortion, Happen, Mishap, Mount, Serve
from keepstep.errors import StorageError
from keepstep.storage.opening import open_storage
from keepstep.storage.retrying import RetryPolicy
from keepstep.testing.block_device import FILE_SYSTEMS, CuttableDisk
from keepstep.testing.fault_proxy import ENDPOINT_VARIABLES, FaultProxy
from keepstep.testing.fault_rules import Rule
from keepstep.testing.faults import EXPIRED_TOKEN, SLOW_DOWN, Fault, LoseReply, SlowBody, TearUpload
from keepstep.testing.s3_server import S3Server

_DISK, _SERVER, _PROXY = "disk", "server", "proxy"
_DISK_BYTES = 256 << 20
_BALLAST = "ballast"
_BUCKET = "drill"
_PATIENCE = RetryPolicy(timeout_seconds=10.0)
"""Of the drill itself, whose server may have been left dead."""

_FAULTS: Mapping[Distortion, Fault] = {
    Distortion.SLOW_DOWN: SLOW_DOWN,
    Distortion.EXPIRED: EXPIRED_TOKEN,
    Distortion.TORN: TearUpload(1000),
    Distortion.UNANSWERED: LoseReply(),
    Distortion.CRAWL: SlowBody(200_000),
}


def play_mount(stage: Stage, act: Mount) -> None:
    """Make the disk."""
    del act
    disk = stage.exits.enter_context(CuttableDisk(FILE_SYSTEMS["ext4"], size_bytes=_DISK_BYTES))
    stage.held[_DISK] = disk
    _keep_at(stage, str(disk.path / "run"))


def play_serve(stage: Stage, act: Serve) -> None:
    """Start server and proxy; ranks talk to the proxy, the drill itself to the server."""
    del act
    server = stage.exits.enter_context(S3Server(stage.directory / "s3"))
    server.create_bucket(_BUCKET)
    proxy = stage.exits.enter_context(FaultProxy(server.endpoint))
    stage.held[_SERVER], stage.held[_PROXY] = server, proxy
    stage.exits.enter_context(_environ(_leading_to(server, server.endpoint)))
    stage.environ |= _leading_to(server, proxy.endpoint)
    _keep_at(stage, f"s3://{_BUCKET}/run")


def play_happen(stage: Stage, act: Happen) -> None:
    """Do it."""
    match act.mishap:
        case Mishap.FILL:
            _fill(stage.held[_DISK].path / _BALLAST)
        case Mishap.FREE:
            (stage.held[_DISK].path / _BALLAST).unlink()
        case Mishap.FAIL:
            disk: CuttableDisk = stage.held[_DISK]
            disk.sync()  # else it would lose what a system writes back within seconds
            disk.set_read_only_on_errors()
            disk.fail()
        case Mishap.REPAIR:
            stage.held[_DISK].remount()
        case Mishap.KILL_SERVER:
            stage.held[_SERVER].kill()
        case Mishap.START_SERVER:
            stage.held[_SERVER].start()
    stage.note(act.mishap, _SERVER if _SERVER in stage.held else _DISK)


def play_distort(stage: Stage, act: Distort) -> None:
    """Give the proxy the rule; when the drill is over, note how many requests have met it."""
    proxy: FaultProxy = stage.held[_PROXY]
    rule = proxy.inject(
        _FAULTS[act.distortion],
        method="PUT",
        path=act.path,
        times=act.times,
    )
    stage.exits.callback(_note_hits, stage, act, rule)


def _leading_to(server: S3Server, endpoint: str) -> dict[str, str]:
    return {**server.environ(), **dict.fromkeys(ENDPOINT_VARIABLES, endpoint)}


@contextmanager
def _environ(values: Mapping[str, str]) -> Iterator[None]:
    """This process is led there, too."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _keep_at(stage: Stage, uri: str) -> None:
    """Keep the run there until the drill is over."""
    usual, there = stage.storage, open_storage(uri, policy=_PATIENCE)
    stage.storage = there
    stage.settings = {**stage.settings, "uri": uri}

    def copy(
        kind: type[BaseException] | None, _error: BaseException | None, _trace: object
    ) -> None:
        if kind is None:
            copy_objects(there, usual)
        elif issubclass(kind, Exception):
            with suppress(StorageError):  # why the drill failed matters more
                copy_objects(there, usual)

    stage.exits.push(copy)


def _fill(path: Path) -> None:
    """To the last block."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def _note_hits(stage: Stage, act: Distort, rule: Rule) -> None:
    stage.notes.setdefault("distorted", []).append([str(act.distortion), rule.hits])
