"""Linux calls that Python 3.11 has no names for, through ctypes. x86-64 and aarch64; on anything else no box is made."""

from __future__ import annotations

import ctypes
import os
import struct

libc = ctypes.CDLL(None, use_errno=True)
# A copy of this process must hold the interpreter lock when it wakes up: PyDLL keeps it during the call.
_locked = ctypes.PyDLL(None, use_errno=True)
# What is looked up here is not looked up again in every box.
_tell_interpreter, _clone = ctypes.PyDLL(None)["PyOS_AfterFork_Child"], _locked["syscall"]
syscall, _mount, _prctl, _socket, _ioctl = (libc[name] for name in ("syscall", "mount", "prctl", "socket", "ioctl"))

MACHINE = os.uname().machine
MACHINES = ("x86_64", "aarch64")  # whose system calls are known here and in seccomp.py
_IS_X86 = MACHINE != "aarch64"

CLONE_PIDFD = 0x1000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
SIGCHLD = 17

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
AT_RECURSIVE = 0x8000
AT_FDCWD = -100
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

_pidfd = ctypes.c_int()
_to_pidfd = ctypes.byref(_pidfd)
_SYS_CLONE = 56 if _IS_X86 else 220
_SYS_PIVOT_ROOT = 155 if _IS_X86 else 41
_SYS_CAPSET = 126 if _IS_X86 else 91
_SYS_CLOSE_RANGE = 436
_SYS_MOUNT_SETATTR = 442

_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES_OF_SELF = struct.pack("Ii", _LINUX_CAPABILITY_VERSION_3, 0)
_NO_CAPABILITIES = bytes(24)
_AF_INET, _SOCK_DGRAM = 2, 2
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 1 | 64
_RAISE_LOOPBACK = struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING)  # struct ifreq


def require_known_machine() -> None:
    """For whoever is about to make boxes.

    Raises:
        OSError: the numbers of this machine's system calls are not known.
    """
    if MACHINE not in MACHINES:
        raise OSError(f"no table of system calls for {MACHINE}; {' and '.join(MACHINES)} have one")


def check(result: int, what: str) -> int:
    """The result of a libc call.

    Raises:
        OSError: it was negative.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def clone(flags: int) -> tuple[int, int]:
    """Fork into new namespaces: (pid, pidfd) in the parent, (0, -1) in the child.

    One fork instead of unshare and two. No hook for forks runs, in neither libc nor the interpreter: the child calls `after_fork`
    or forks once more. This process must have one thread only.
    """
    pid = _clone(_SYS_CLONE, flags | CLONE_PIDFD | SIGCHLD, None, _to_pidfd, None, None)
    if pid < 0:
        check(pid, f"clone {flags:#x}")
    return pid, _pidfd.value if pid else -1


def fork() -> int:
    """Fork without the hooks of the interpreter, for a parent that does next to nothing; the child calls `after_fork`."""
    return check(_locked.fork(), "fork")


def after_fork() -> None:
    """Tell the interpreter that this is another process now: locks, random numbers, threads."""
    _tell_interpreter()


def unshare(flags: int) -> None:
    check(libc.unshare(flags), f"unshare {flags:#x}")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    if _mount(source and source.encode(), target.encode(), kind and kind.encode(), flags, data and data.encode()) < 0:
        check(-1, f"mount {source} on {target}")


def bind_read_only(source: str, target: str) -> None:
    """Bind with all that is mounted below, read-only, without devices and set-uid programs; needs Linux 5.12."""
    mount(source, target, None, MS_BIND | MS_REC)
    set_mount(target, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)


def set_mount(target: str, attributes: int) -> None:
    """Add attributes to a mount and all below it; those it has stay."""
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    result = syscall(_SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, wanted, ctypes.c_size_t(len(wanted)))
    check(result, f"mount_setattr {target}")


def unmount(target: str) -> None:
    check(libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    check(syscall(_SYS_PIVOT_ROOT, new.encode(), old.encode()), "pivot_root")


def prctl(option: int, value: int = 0) -> None:
    check(_prctl(option, value, 0, 0, 0), f"prctl {option}")


def set_hostname(name: bytes) -> None:
    check(libc.sethostname(name, len(name)), "sethostname")


LAST_DESCRIPTOR = 0x7FFFFFFF


def close_range(first: int, last: int) -> None:
    if first <= last:
        check(syscall(_SYS_CLOSE_RANGE, first, last, 0), "close_range")


def close_all_but(kept: list[int]) -> None:
    """Close every descriptor that is not in `kept`."""
    first = 0
    for descriptor in sorted(set(kept)):
        close_range(first, descriptor - 1)
        first = descriptor + 1
    close_range(first, LAST_DESCRIPTOR)


def write_text(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def map_ids(inside: int, uid: int, gid: int) -> None:
    """Make the caller of a fresh user namespace known in it as `inside`."""
    write_text("/proc/self/setgroups", "deny")
    write_text("/proc/self/uid_map", f"{inside} {uid} 1")
    write_text("/proc/self/gid_map", f"{inside} {gid} 1")


def drop_capabilities() -> None:
    """Empty all sets, the bounding set included, and never gain any again."""
    number = 0
    while _prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    check(syscall(_SYS_CAPSET, _CAPABILITIES_OF_SELF, _NO_CAPABILITIES), "capset")
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def raise_loopback() -> None:
    """Bring `lo` of this network namespace up: programs may talk to themselves."""
    device = check(_socket(_AF_INET, _SOCK_DGRAM, 0), "socket")
    check(_ioctl(device, _SIOCSIFFLAGS, _RAISE_LOOPBACK), "bringing lo up")
    os.close(device)
