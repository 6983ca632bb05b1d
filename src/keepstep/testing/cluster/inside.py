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
from typing import Any

_NEW_MOUNTS, _NEW_HOST_NAME, _NEW_IPC, _NEW_PIDS = 0x20000, 0x4000000, 0x8000000, 0x20000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
_DIE_WITH_PARENT = 1
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_CANNOT_START = 128

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        specification = json.load(file)
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    is_contained = bool(specification["root"])
    if is_contained:
        _join_network(specification["network"])
        _call(_libc.unshare(_NEW_MOUNTS | _NEW_HOST_NAME | _NEW_IPC | _NEW_PIDS))
    child = os.fork()
    if child == 0:
        _become(specification, is_contained=is_contained)
    _write(specification["pid_file"], str(child))
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
    except BaseException:  # whatever it is, the pod has to say why it could not start
        os.write(2, traceback.format_exc().encode())
        os._exit(_CANNOT_START)


def _mount_all(specification: dict[str, Any]) -> None:
    """This machine's root with a layer that is thrown away; then the volumes, outermost first."""
    base = specification["root"]
    root = base + "/root"
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    _mount("tmpfs", base, "tmpfs", 0)
    for name in ("upper", "work", "root"):
        os.mkdir(f"{base}/{name}")
    os.chmod(f"{base}/upper", 0o755)  # noqa: S103  # the root directory of every system
    layers = f"lowerdir=/,upperdir={base}/upper,workdir={base}/work"
    _mount("overlay", root, "overlay", 0, layers)
    _mount("proc", root + "/proc", "proc", 0)
    _mount_devices(root)
    for entry in sorted(specification["mounts"], key=lambda each: len(each["target"])):
        _mount_volume(root, entry)
    for path in specification["keep"]:  # what a volume has hidden and the command needs
        target = root + path
        if not os.path.exists(target):
            os.makedirs(target)
            _mount(path, target, "", _BIND | _RECURSIVE)
        if specification["user"] is not None:
            _open_way(root, path)
    if specification["is_read_only"]:
        _mount("none", root, "", _REMOUNT | _BIND | _READ_ONLY)


def _open_way(root: str, path: str) -> None:
    """For users that may not enter one of the directories above, in the layer that is thrown away."""
    while path != "/":
        path = os.path.dirname(path)
        mode = os.stat(root + path).st_mode
        if not mode & 0o001:
            os.chmod(root + path, (mode & 0o7777) | 0o001)


def _mount_devices(root: str) -> None:
    _mount("tmpfs", root + "/dev", "tmpfs", 0, "mode=755")
    names = [*_DEVICES, *(name for name in os.listdir("/dev") if name.startswith("nvidia"))]
    for name in names:
        if os.path.isdir(f"/dev/{name}") or not os.path.exists(f"/dev/{name}"):
            continue
        _write(f"{root}/dev/{name}", "")
        _mount(f"/dev/{name}", f"{root}/dev/{name}", "", _BIND)
    for name, to in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink("/proc/self/fd" + to, f"{root}/dev/{name}")
    os.mkdir(root + "/dev/shm")
    _mount("tmpfs", root + "/dev/shm", "tmpfs", 0, "size=64m,mode=1777")


def _mount_volume(root: str, entry: dict[str, Any]) -> None:
    target = root + entry["target"]
    if entry["source"] is None:
        os.makedirs(target, exist_ok=True)
        size = f",size={entry['size_bytes']}" if entry["size_bytes"] else ""
        _mount("tmpfs", target, "tmpfs", 0, "mode=1777" + size)
        return
    if os.path.isdir(entry["source"]):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _write(target, "")
    _mount(entry["source"], target, "", _BIND | _RECURSIVE)
    if entry["is_read_only"]:
        _mount("none", target, "", _REMOUNT | _BIND | _READ_ONLY)


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


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    words = (source.encode(), target.encode(), kind.encode())
    _call(_libc.mount(*words, flags, data.encode()), target)


def _call(result: int, what: str = "") -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
