"""A small disk and a folder that cannot be written, for a process of its own: by the system, as any user."""

import ctypes
import os
import resource
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000


class SmallDisk:
    """A file system of `size` bytes at `folder`, where the system lets one be mounted; `kind` says which it is.

    That needs root, or a user namespace, and ends with this process. Elsewhere (`limit`) the stand-in is a limit on a
    file's size, which the system keeps too: writing fails with EFBIG where a full disk says ENOSPC.
    """

    def __init__(self, folder: Path, size: int, forced: str = os.environ.get("SMALL_DISK", "")):
        self.folder, self.ballast = folder, folder / "ballast"
        folder.mkdir(parents=True, exist_ok=True)
        self.kind = "limit" if forced == "limit" or not _mount(folder, size) else "tmpfs"

    def fill(self, leave: int) -> None:
        """From now on there is room for `leave` bytes: on the disk, or in any one file."""
        if self.kind == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (leave, resource.RLIM_INFINITY))
            return
        status = os.statvfs(self.folder)
        self.ballast.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - leave)))

    def free(self) -> None:
        """Space is made."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        self.ballast.unlink(missing_ok=True)


def _mount(folder: Path, size: int) -> bool:
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_NEW_USER | _NEW_MOUNTS) != 0:
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return _libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()) == 0


def respect_modes() -> None:
    """Root, too, may now write only where a folder's mode says so."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        without = ~0b110 & 0xFFFFFFFF  # of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        sets = (ctypes.c_uint32 * 6)()
        assert _libc.capget(header, sets) == 0
        for place in (0, 1):  # effective and permitted
            sets[place] &= without
        assert _libc.capset(header, sets) == 0
