"""A bind mount in which one user's files are another's: what root's project needs to be writable, in copies, by a box.

Linux 5.12, and a filesystem that can do it; both are found out by trying.
"""

from __future__ import annotations

import ctypes
import os
import struct

from atlas.sandbox.inside import kernel

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_AT_EMPTY_PATH = 0x1000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x100000
_ATTRIBUTES = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV


def bind_read_only(source: str, target: str, uid: int) -> None:
    """Bind read-only; what belongs to the owner of `source` is seen as belonging to `uid`.

    Raises:
        OSError: the kernel or the filesystem cannot, or this process is not root.
    """
    owner = os.stat(source)
    namespace = _namespace(f"{owner.st_uid} {uid} 1", f"{owner.st_gid} {uid} 1")
    try:
        flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | kernel.AT_RECURSIVE
        tree = _call("open_tree", _SYS_OPEN_TREE, kernel.AT_FDCWD, source.encode(), flags)
        try:
            wanted = struct.pack("QQQQ", _ATTRIBUTES | _MOUNT_ATTR_IDMAP, 0, 0, namespace)
            size = ctypes.c_size_t(len(wanted))
            _call("mount_setattr", _SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | kernel.AT_RECURSIVE, wanted, size)
            _call("move_mount", _SYS_MOVE_MOUNT, tree, b"", kernel.AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)
    finally:
        os.close(namespace)


def _call(name: str, number: int, *arguments: object) -> int:
    return kernel.check(kernel.syscall(number, *arguments), name)


def _namespace(uid_map: str, gid_map: str) -> int:
    """A descriptor of a user namespace with these maps; it lives as long as that is open."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kernel.unshare(kernel.CLONE_NEWUSER)
            os.write(ready[1], b".")
            os.close(done[1])
            os.read(done[0], 1)
        finally:
            os._exit(0)
    for descriptor in (ready[1], done[0]):
        os.close(descriptor)
    try:
        if not os.read(ready[0], 1):
            raise OSError("no user namespace for the project's owner")
        seen = _youngest_child()
        kernel.write_text(f"/proc/{seen}/uid_map", uid_map)
        kernel.write_text(f"/proc/{seen}/gid_map", gid_map)
        return os.open(f"/proc/{seen}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(done[1])
        os.close(ready[0])
        os.waitpid(child, 0)


def _youngest_child() -> str:
    """Its pid as /proc has it, which may be that of another namespace than ours."""
    with open("/proc/thread-self/children", encoding="ascii") as file:
        return file.read().split()[-1]
