"""Ends what a box has left behind where no namespace ends with it: its processes, and its files."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat

from atlas.sandbox.inside import kernel, landlock

PROC = "/proc"


def adopt_orphans() -> None:
    """Make the orphans of this process's descendants its own children."""
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)


def draw_line() -> None:
    """From here on this process can signal only what it starts itself.

    Raises:
        OSError: the kernel does not hold to that; `kill_all` would reach everything of this user.
    """
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    landlock.scope_signals()
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return
    raise OSError(errno.ENOTSUP, "Landlock does not keep signals within a box")


def kill_all() -> None:
    """End everything beyond the line at once, what is just being forked as well. Only after `draw_line`."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def hunt_down(first: int) -> None:
    """End the descendants of `first` one by one, where no line can be drawn; a program may be quicker than this."""
    for pid in children(first):
        hunt_down(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"{PROC}/{pid}/task"):
            with open(f"{PROC}/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found


def end_children(known: set[int]) -> None:
    """End and reap every child that is not known, and the orphans that follow."""
    while strays := [pid for pid in children(os.getpid()) if pid not in known]:
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def remove_tree(path: str) -> None:
    """Remove a directory that a box has written to, however deep, however closed. Nobody writes to it any more.

    What directories hold is moved up to the top, so that no path grows and nothing recurses.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    prefix, number = os.urandom(8).hex(), 0
    try:
        while names := os.listdir(top):
            for name in names:
                number = _remove(top, name, prefix, number)
    finally:
        os.close(top)
    os.rmdir(path)


def _remove(top: int, name: str, prefix: str, number: int) -> int:
    """Remove one entry of the top; directories in it become entries of the top, numbered from `number` on."""
    if not _open_up(top, name):
        os.unlink(name, dir_fd=top)
        return number
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        for entry in os.listdir(directory):
            if _open_up(directory, entry):
                os.rename(entry, f"{prefix}-{number}", src_dir_fd=directory, dst_dir_fd=top)
                number += 1
            else:
                os.unlink(entry, dir_fd=directory)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=top)
    return number


def _open_up(parent: int, name: str) -> bool:
    """Whether it is a directory; if so, its owner may do everything with it."""
    is_directory = stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    if is_directory:
        os.chmod(name, 0o700, dir_fd=parent)
    return is_directory
