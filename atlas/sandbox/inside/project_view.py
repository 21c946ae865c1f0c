"""Somebody's project in a box: at its own path, writable without changing it, with what a verdict rests on read-only.

The zygote shows the project read-only at LOWER; each box mounts a copy-on-write view of it where it really lies, so that paths in
a virtual environment hold, and then covers LOWER, with the history and everything else that the view leaves out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from typing import Any

from atlas.sandbox.inside import idmap, kernel, view

BASE = "/box/project"
LOWER = f"{BASE}/lower"
UPPER = f"{BASE}/upper"  # what the box writes, and what overlayfs needs beside it
INODES = 200_000
_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV


class Project:
    """In the zygote: the project that its boxes will see. Made before the old root is left."""

    def __init__(self, directory: str, uid: int | None) -> None:
        """`uid`: what boxes will run as, if it is not this process's own."""
        self._directory = directory
        self._uid = uid
        self._descriptor = os.open(directory, os.O_PATH | os.O_CLOEXEC)

    def show(self, root: str) -> None:
        """Bind it read-only at LOWER below `root`, as `uid`'s own if that can be had."""
        for path in (LOWER, UPPER):
            os.makedirs(root + path)
        with contextlib.suppress(
            OSError
        ):  # it lies in what is shown read-only, and is there; or in /tmp, which each box has anew
            os.makedirs(root + self._directory, exist_ok=True)
        self._bind(f"/proc/self/fd/{self._descriptor}", root + LOWER)
        os.close(self._descriptor)

    def _bind(self, source: str, target: str) -> None:
        if self._uid is not None:
            try:
                idmap.bind_read_only(source, target, self._uid)
            except OSError:  # then boxes copy what they may read
                pass
            else:
                return
        kernel.bind_read_only(source, target)


def mount(project: dict[str, Any], disk_bytes: int) -> None:
    """In the box, while it may mount: the view, the candidate's changes in it, and then the protection.

    Raises:
        OSError: the project cannot be mounted, or does not fit where it must be copied.
    """
    directory = project["directory"]
    os.makedirs(directory, exist_ok=True)
    kernel.mount("tmpfs", UPPER, "tmpfs", _FLAGS, f"size={disk_bytes},nr_inodes={INODES},mode=700")
    if not _overlay(directory):
        left_out = {*project["shared"], *project["hidden"]}
        kernel.mount("tmpfs", directory, "tmpfs", _FLAGS, f"size={disk_bytes},nr_inodes={INODES},mode=700")
        _copy(directory, left_out)
    for path in project["shared"]:
        _share(path, directory)
    for path in project["hidden"]:
        _hide(os.path.join(directory, path))
    _change(directory, project["changes"])
    for path in project["protected"]:
        place = os.path.join(directory, path)
        if os.path.lexists(place) and not os.path.islink(place):
            kernel.bind_read_only(place, place)
    kernel.mount("tmpfs", BASE, "tmpfs", _FLAGS | kernel.MS_RDONLY, "size=4k")


def _overlay(directory: str) -> bool:
    """Whether it could be had: Linux 5.11, and files that are the box's own, or writing would fail on most of them."""
    if os.stat(LOWER).st_uid != view.BOX_ID:
        return False
    for name in ("files", "work"):
        os.mkdir(f"{UPPER}/{name}")
    try:
        options = f"lowerdir={LOWER},upperdir={UPPER}/files,workdir={UPPER}/work,userxattr"
        kernel.mount("overlay", directory, "overlay", _FLAGS, options)
    except OSError:
        return False
    return True


def _copy(directory: str, left_out: set[str]) -> None:
    """The other way to the same view: copy all that may be read."""
    for place, path, kind in _walk(LOWER, left_out):
        target = os.path.join(directory, path)
        with contextlib.suppress(PermissionError):
            if stat.S_ISDIR(kind):
                os.mkdir(target)
            elif stat.S_ISLNK(kind):
                os.symlink(os.readlink(place), target)
            elif stat.S_ISREG(kind):
                shutil.copyfile(place, target)
                os.chmod(target, stat.S_IMODE(kind) | stat.S_IWUSR | stat.S_IRUSR)


def _walk(top: str, left_out: set[str], below: str = "") -> Iterator[tuple[str, str, int]]:
    """Place, relative path and mode of everything, directories first; what is left out is an empty directory or file."""
    try:
        entries = sorted(os.scandir(os.path.join(top, below)), key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in entries:
        path = os.path.join(below, entry.name)
        kind = entry.stat(follow_symlinks=False).st_mode
        if path in left_out and stat.S_ISREG(kind):
            continue
        yield entry.path, path, kind
        if stat.S_ISDIR(kind) and path not in left_out:
            yield from _walk(top, left_out, path)


def _share(path: str, directory: str) -> None:
    """The environment as it is: too large to be copied, and not the candidate's to change."""
    target = os.path.join(directory, path)
    if not os.path.islink(target):
        os.makedirs(target, exist_ok=True)
        kernel.bind_read_only(os.path.join(LOWER, path), target)


def _hide(place: str) -> None:
    if os.path.islink(place) or not os.path.lexists(place):
        return
    if os.path.isdir(place):
        kernel.mount("tmpfs", place, "tmpfs", _FLAGS | kernel.MS_RDONLY, "size=4k")
    else:
        kernel.mount("/dev/null", place, None, kernel.MS_BIND)


def _change(directory: str, changes: dict[str, str | None]) -> None:
    for path, text in changes.items():
        if text is None:
            os.unlink(os.path.join(directory, path))
    for path, text in changes.items():
        if text is not None:
            place = os.path.join(directory, path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "w", encoding="utf-8", newline="") as file:
                file.write(text)


def writable(project: dict[str, Any] | None) -> list[str]:
    """What Landlock must let a box write for it."""
    return [project["directory"]] if project else []
