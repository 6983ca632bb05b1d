"""A small disk with a real file system, whose power can be cut.

::

    with CuttableDisk(FILE_SYSTEMS["ext4"]) as disk:
        (disk.path / "file").write_bytes(b"...")
        disk.cut()          # from here on every call fails, and nothing more reaches the device
        disk.remount()      # what a machine finds that starts again

The device is a loop device over memory. The cut is the file system's own shutdown ioctl, which
drops what was not written, its log included; mounting again replays the journal as after a power
cut. Needs Linux and root.
"""

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from keepstep.errors import StorageUnavailable

_SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN of ext4, XFS_IOC_GOINGDOWN of xfs: _IOR('X', 125, __u32)."""
_WITHOUT_FLUSHING_LOG = 2
_UNMOUNT_SECONDS = 10.0
_KEEPER = """
echo; cat > /dev/null; cd "$0"; umount -l mount; umount -l back; rmdir mount back "$0"
"""

LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """How one is made and mounted."""

    name: str
    make: tuple[str, ...]
    options: str
    least_bytes: int


FILE_SYSTEMS = {
    system.name: system
    for system in (
        # commit=300: the journal is committed when a test says so, not every 5 seconds.
        FileSystem("ext4", ("mkfs.ext4", "-q", "-F"), "commit=300", 32 << 20),
        # Without what ext4 does for programs that forget to sync.
        FileSystem(
            "ext4-writeback",
            ("mkfs.ext4", "-q", "-F"),
            "commit=300,data=writeback,noauto_da_alloc",
            32 << 20,
        ),
        FileSystem("xfs", ("mkfs.xfs", "-q", "-f"), "", 300 << 20),
    )
}


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor, by libc: whoever watches the calls of ``os`` does not see it."""
    descriptor = LIBC.open(os.fsencode(path), flags | os.O_CLOEXEC, 0o600)
    if descriptor < 0:
        raise StorageUnavailable(f"cannot open {path}: {os.strerror(ctypes.get_errno())}")
    try:
        yield descriptor
    finally:
        LIBC.close(descriptor)


def cannot_cut(*systems: FileSystem) -> str | None:
    """Why there can be no such disk on this machine; ``None`` if there can be."""
    if sys.platform != "linux":
        return "cutting a disk's power needs Linux"
    if os.geteuid() != 0:
        return "cutting a disk's power needs root: loop devices and mounts"
    tools = ["unshare", "nsenter", "mount", "umount", *(system.make[0] for system in systems)]
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        return f"cutting a disk's power needs {', '.join(missing)}: install it"
    if not Path("/dev/loop-control").exists():
        return "cutting a disk's power needs loop devices: there is no /dev/loop-control"
    return None


class CuttableDisk:
    """A mounted file system. Mounts live in a namespace of their own and end with this process.

    Args:
        size_bytes: Of the device; the least the file system takes by default.
        backing_bytes: Memory behind the device. Less than its size: writes are accepted into the
            page cache, and fail when they are synced.

    *Raises:* ``StorageUnavailable`` if the machine cannot do it; see :func:`cannot_cut`.
    """

    def __init__(
        self, system: FileSystem, *, size_bytes: int = 0, backing_bytes: int = 1 << 30
    ) -> None:
        self.system = system
        self._size_bytes = max(size_bytes, system.least_bytes)
        self._backing_bytes = backing_bytes
        self._keeper: subprocess.Popen[bytes] | None = None
        self._directory = Path("/")

    @property
    def path(self) -> Path:
        """Where it is mounted, as this process sees it."""
        assert self._keeper is not None
        return Path(f"/proc/{self._keeper.pid}/root{self._mount_point}")

    @property
    def device(self) -> int:
        """``st_dev`` of its files."""
        return self.path.stat().st_dev

    @property
    def _mount_point(self) -> Path:
        return self._directory / "mount"

    def __enter__(self) -> Self:
        if (reason := cannot_cut(self.system)) is not None:
            raise StorageUnavailable(reason)
        self._directory = Path(tempfile.mkdtemp(prefix="keepstep-disk-"))
        try:
            self._start_keeper()
            self._make()
            self._mount()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmount; device and memory go with the namespace."""
        if self._keeper is not None:
            self._keeper.communicate()  # the end of its input is its end
            self._keeper = None

    def cut(self) -> None:
        """Cut the power: nothing more reaches the device, and every call fails with EIO."""
        with opened(self.path) as descriptor:
            fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_FLUSHING_LOG.to_bytes(4, sys.byteorder))

    def remount(self) -> None:
        """Mount anew, after a cut as a machine that starts again.

        *Blocks:* until nobody has a file open on it, 10 s at most.
        *Raises:* ``StorageUnavailable`` if somebody still has.
        """
        deadline = time.monotonic() + _UNMOUNT_SECONDS
        while True:
            try:
                self._inside("umount", str(self._mount_point))
                break
            except StorageUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self._mount()

    def sync(self) -> None:
        """Write back everything there is."""
        with opened(self.path) as descriptor:
            if LIBC.syncfs(descriptor) != 0:
                raise StorageUnavailable(f"syncfs failed: {os.strerror(ctypes.get_errno())}")

    def set_read_only(self, *, is_read_only: bool) -> None:
        """What an administrator does, or the kernel after an error."""
        mode = "ro" if is_read_only else "rw"
        self._inside("mount", "-o", f"remount,{mode}", str(self._mount_point))

    def set_read_only_on_errors(self) -> None:
        """What most distributions choose for ext4."""
        self._inside("mount", "-o", "remount,errors=remount-ro", str(self._mount_point))

    def fail(self) -> None:
        """Have ext4 find an error in itself, and do what it does then. What is cached stays
        readable.
        """
        device = self.device
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{block}/trigger_fs_error").write_text("a test")

    def add_memory(self, backing_bytes: int) -> None:
        """Lift the limit of the memory behind the device."""
        self._inside("mount", "-o", f"remount,size={backing_bytes}", str(self._directory / "back"))

    def _start_keeper(self) -> None:
        """A process that owns the mounts: once it is gone, however that came, so are they."""
        command = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _KEEPER)
        self._keeper = subprocess.Popen(  # noqa: S603  # words of this module
            (*command, self._directory),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not meant for it
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != b"\n":
            raise StorageUnavailable("a mount namespace is refused here: run as real root")

    def _make(self) -> None:
        back, image = self._directory / "back", self._directory / "back" / "image"
        back.mkdir()
        self._mount_point.mkdir()
        size = f"size={self._backing_bytes}"
        self._inside("mount", "-t", "tmpfs", "-o", size, "tmpfs", str(back))
        self._inside("truncate", "-s", str(self._size_bytes), str(image))
        self._inside(*self.system.make, str(image))

    def _mount(self) -> None:
        # With "loop" the kernel lets go of the device once it is unmounted.
        options = ",".join(filter(None, ("loop", self.system.options)))
        image = self._directory / "back" / "image"
        self._inside("mount", "-o", options, str(image), str(self._mount_point))

    def _inside(self, *command: str) -> None:
        assert self._keeper is not None
        enter = ("nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", *command)
        done = subprocess.run(enter, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise StorageUnavailable(f"{' '.join(command)}: {done.stderr.strip()}")
