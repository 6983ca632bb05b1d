"""A script: become a container. ``python -I -S inside.py SPECIFICATION.json``

Makes namespaces (process ids, mounts, host name, IPC; that of the network is there already), mounts
an overlay of this machine's root with the volumes in it, and executes the command as process 1.
This process stays outside, and ends with the command's exit code, or 128 + the signal's number.
(``unshare --fork`` of util-linux 2.38 would answer 1 to every signal.)

Where the specification has no ``root``, nothing of this is done: the command is executed as it is.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

_NEW_MOUNTS, _NEW_HOST_NAME, _NEW_IPC, _NEW_PIDS = 0x20000, 0x4000000, 0x8000000, 0x20000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
_DIE_WITH_PARENT = 1
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_CANNOT_START = 128

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    specification = json.loads(Path(sys.argv[1]).read_text())
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    is_contained = bool(specification["root"])
    if is_contained:
        _join_network(specification["network"])
        _call(_libc.unshare(_NEW_MOUNTS | _NEW_HOST_NAME | _NEW_IPC | _NEW_PIDS))
    child = os.fork()
    if child == 0:
        _become(specification, is_contained=is_contained)
    Path(specification["pid_file"]).write_text(str(child))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _become(specification: dict[str, Any], *, is_contained: bool) -> None:
    """In the child: everything up to the command."""
    try:
        os.setsid()
        if is_contained:
            _mount_all(specification)
            name = specification["hostname"].encode()
            _call(_libc.sethostname(name, len(name)))
            os.chroot(specification["root"] + "/root")
        os.chdir(specification["cwd"])
        _change_user(specification["user"], specification["group"])
        _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)  # a change of user undoes it
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(specification["argv"][0], specification["argv"], specification["environ"])  # noqa: S606
    except BaseException:  # noqa: BLE001  # the pod has to say why it could not start
        os.write(2, traceback.format_exc().encode())
        os._exit(_CANNOT_START)


def _mount_all(specification: dict[str, Any]) -> None:
    """This machine's root with a layer that is thrown away; then the volumes, outermost first."""
    base = Path(specification["root"])
    root = base / "root"
    _mount("none", Path("/"), "", _RECURSIVE | _PRIVATE)
    _mount("tmpfs", base, "tmpfs", 0)
    for name in ("upper", "work", "root"):
        (base / name).mkdir()
    (base / "upper").chmod(0o755)
    layers = f"lowerdir=/,upperdir={base}/upper,workdir={base}/work"
    _mount("overlay", root, "overlay", 0, layers)
    _mount("proc", root / "proc", "proc", 0)
    _mount_devices(root / "dev")
    for entry in sorted(specification["mounts"], key=lambda each: len(each["target"])):
        _mount_volume(_below(root, entry["target"]), entry)
    for path in specification["keep"]:  # what a volume has hidden and the command needs
        target = _below(root, path)
        if not target.exists():
            target.mkdir(parents=True)
            _mount(path, target, "", _BIND | _RECURSIVE)
        if specification["user"] is not None:
            _open_way(root, target)
    if specification["is_read_only"]:
        _mount("none", root, "", _REMOUNT | _BIND | _READ_ONLY)


def _open_way(root: Path, target: Path) -> None:
    """For users that may not enter a directory above: in the layer that is thrown away."""
    for directory in target.parents:
        if directory == root:
            return
        mode = directory.stat().st_mode & 0o7777
        if not mode & 0o001:
            directory.chmod(mode | 0o001)


def _mount_devices(devices: Path) -> None:
    _mount("tmpfs", devices, "tmpfs", 0, "mode=755")
    found = [Path("/dev", name) for name in _DEVICES]
    for device in (*found, *Path("/dev").glob("nvidia*")):
        if device.exists() and not device.is_dir():
            (devices / device.name).touch()
            _mount(str(device), devices / device.name, "", _BIND)
    for name, to in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        (devices / name).symlink_to("/proc/self/fd" + to)
    (devices / "shm").mkdir()
    _mount("tmpfs", devices / "shm", "tmpfs", 0, "size=64m,mode=1777")


def _mount_volume(target: Path, entry: dict[str, Any]) -> None:
    if entry["source"] is None:
        target.mkdir(parents=True, exist_ok=True)
        size = f",size={entry['size_bytes']}" if entry["size_bytes"] else ""
        _mount("tmpfs", target, "tmpfs", 0, "mode=1777" + size)
        return
    if Path(entry["source"]).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(entry["source"], target, "", _BIND | _RECURSIVE)
    if entry["is_read_only"]:
        _mount("none", target, "", _REMOUNT | _BIND | _READ_ONLY)


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _join_network(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    _call(_libc.setns(descriptor, 0))
    os.close(descriptor)


def _change_user(user: int | None, group: int | None) -> None:
    if user is None:
        return
    os.setgroups([] if group is None else [group])
    os.setgid(user if group is None else group)
    os.setuid(user)


def _mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    words = (source.encode(), bytes(target), kind.encode())
    _call(_libc.mount(*words, flags, data.encode()), str(target))


def _call(result: int, what: str = "") -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


if __name__ == "__main__":
    main()
