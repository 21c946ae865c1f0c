"""Lets an ordinary user reach what lies below directories that are closed to others, in a mount namespace of its own.

Root can read its own home; who root becomes cannot, and an interpreter may well lie there. Nothing changes outside the namespace.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from atlas.sandbox.inside import kernel

_READ_AND_ENTER = 0o5  # of others
_ENTER = 0o1


def open_way(needed: Iterable[str]) -> None:
    """Cover closed directories above `needed`, and put back at its own path what is needed; all else in them is hidden.

    Raises:
        OSError: the caller may not mount.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kept = [*dict.fromkeys(path for top in needed if os.path.exists(top) for path in _openable(os.path.abspath(top)))]
    for cover in dict.fromkeys(map(_outermost_closed, kept)):
        if cover is not None:
            _cover(cover, _outermost([path for path in kept if path.startswith(cover + "/")]))


def _cover(closed: str, kept: list[str]) -> None:
    held = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in kept}
    kernel.mount("tmpfs", closed, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m")
    for path, descriptor in held.items():
        _put_back(path, descriptor)
        os.close(descriptor)
    kernel.set_mount(closed, kernel.MOUNT_ATTR_RDONLY)


def _put_back(path: str, descriptor: int) -> None:
    is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
    os.makedirs(path if is_directory else os.path.dirname(path), 0o755, exist_ok=True)
    if not is_directory:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(f"/proc/self/fd/{descriptor}", path, None, kernel.MS_BIND | kernel.MS_REC)


def _openable(path: str) -> Iterator[str]:
    """The path, or if it is itself a closed directory what lies in it."""
    if os.path.isdir(path) and not _has(path, _READ_AND_ENTER):
        yield from (os.path.join(path, name) for name in os.listdir(path))
    else:
        yield path


def _outermost_closed(path: str) -> str | None:
    parts = os.path.dirname(path).split("/")
    parents = ["/".join(parts[:length]) for length in range(2, len(parts) + 1)]
    return next((parent for parent in parents if not _has(parent, _ENTER)), None)


def _has(path: str, bits: int) -> bool:
    return os.stat(path).st_mode & bits == bits


def _outermost(paths: list[str]) -> list[str]:
    return [path for path in paths if not any(path.startswith(other + "/") for other in paths)]
