"""The files a box can see: a root made once per zygote, read-only; per box only HOME, TESTS, /tmp, /dev/shm and /proc."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable

from atlas.sandbox.inside import fresh
from atlas.sandbox.inside.kernel import (
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    bind_read_only,
    mount,
    pivot_root,
    set_mount,
    unmount,
)

BOX_ID = 1000  # uid and gid inside
HOME = "/box/work"  # below one name that no interpreter or project lies at
TESTS = "/box/tests"
PROGRAM = fresh.PROGRAM
WRITABLE = (HOME, "/tmp", "/dev/shm")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
DEVICE_LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": HOME,
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
}
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives")
_MOUNT_AT = "/tmp"
INODES = 4096
ACCOUNTS = {
    "/etc/passwd": f"root:x:0:0::/:/bin/false\nbox:x:{BOX_ID}:{BOX_ID}::{HOME}:/bin/sh\n",
    "/etc/group": f"root:x:0:\nbox:x:{BOX_ID}:\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def build(read_only: list[str], also: Iterable[Callable[[str], None]] = ()) -> bool:
    """Make the root of this mount namespace; whether it has a /proc.

    Args:
        read_only: absolute paths beside the system's own that are seen at the same place.
        also: called with the place where the new root is being made; show what does not lie at the same place.

    Raises:
        OSError: a layer cannot be had.
    """
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    # Held open, because the new root covers /tmp while it is made, and a source may lie there.
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in outermost([*SYSTEM, *read_only])}
    program = os.open(os.path.dirname(os.path.realpath(__file__)), os.O_PATH | os.O_CLOEXEC)
    devices = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in DEVICES}
    libraries = _read("/etc/ld.so.cache")
    mount("tmpfs", _MOUNT_AT, "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=755")
    for path, descriptor in sources.items():
        _show(path, descriptor)
    _show_at(PROGRAM, program)
    _make_directories()
    for show in also:
        show(_MOUNT_AT)
    for path, descriptor in devices.items():
        _write(path, b"")
        mount(f"/proc/self/fd/{descriptor}", _MOUNT_AT + path, None, MS_BIND)
    for path, text in ACCOUNTS.items():
        _write(path, text.encode())
    if libraries:
        _write("/etc/ld.so.cache", libraries)
    for descriptor in (*sources.values(), program, *devices.values()):
        os.close(descriptor)
    return _enter()


def _enter() -> bool:
    os.mkdir(_MOUNT_AT + "/old")
    pivot_root(_MOUNT_AT, _MOUNT_AT + "/old")
    os.chdir("/")
    try:
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        has_proc = True
    except OSError:  # a container that covers paths in /proc: its own stays, for us, and boxes have none
        mount("/old/proc", "/proc", None, MS_BIND | MS_REC)
        has_proc = False
    unmount("/old")
    os.rmdir("/old")
    set_read_only_root()
    return has_proc


def set_read_only_root() -> None:
    mount("none", "/", None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def outermost(paths: list[str]) -> list[str]:
    """Those that exist and lie in no other one."""
    found = sorted({path for path in paths if os.path.lexists(path)})
    return [path for path in found if not any(path.startswith(other.rstrip("/") + "/") for other in found)]


def _show(path: str, descriptor: int) -> None:
    if os.path.islink(path):
        os.makedirs(_MOUNT_AT + os.path.dirname(path), exist_ok=True)
        os.symlink(os.readlink(path), _MOUNT_AT + path)
    else:
        _show_at(path, descriptor)


def _show_at(path: str, descriptor: int) -> None:
    is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
    os.makedirs(_MOUNT_AT + (path if is_directory else os.path.dirname(path)), exist_ok=True)
    if not is_directory:
        _write(path, b"")
    bind_read_only(f"/proc/self/fd/{descriptor}", _MOUNT_AT + path)


def _make_directories() -> None:
    for path in ("/proc", "/dev", "/etc", "/run", TESTS, *WRITABLE):
        os.makedirs(_MOUNT_AT + path, exist_ok=True)
    for name, target in DEVICE_LINKS.items():
        os.symlink(target, _MOUNT_AT + name)


def _write(path: str, content: bytes) -> None:
    with open(_MOUNT_AT + path, "wb") as file:
        file.write(content)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def mount_own(disk_bytes: int, *, has_proc: bool, has_tests: bool) -> None:
    """What one box has for itself."""
    mount_proc(has_proc=has_proc)
    for path in (*WRITABLE, *((TESTS,) if has_tests else ())):
        mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, _tmpfs_options(disk_bytes))


def mount_proc(*, has_proc: bool) -> None:
    """/proc shows the box's own processes and nothing else of the machine; or nothing at all."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY
    if has_proc:
        mount("proc", "/proc", "proc", flags, "hidepid=2,subset=pid")
    else:
        mount("tmpfs", "/proc", "tmpfs", flags, "size=4k")


def limit_disk(path: str, disk_bytes: int) -> None:
    """Limit the tmpfs mounted at `path` as a box's own are."""
    mount("none", path, None, MS_REMOUNT | MS_NOSUID | MS_NODEV, _tmpfs_options(disk_bytes))


def _tmpfs_options(disk_bytes: int) -> str:
    return f"size={disk_bytes},nr_inodes={INODES},mode=700"


def close_tests() -> None:
    """From here on TESTS cannot be written."""
    set_mount(TESTS, MOUNT_ATTR_RDONLY)


def put_files(directory: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = f"{directory}/{name}"
        if "/" in name:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        content = memoryview(text.encode("utf-8", "surrogateescape"))
        while content:
            content = content[os.write(descriptor, content) :]
        os.close(descriptor)


COVERED = ("/tmp/", "/dev/shm/")  # of the host, which no box sees


def covered_by_box(places: list[str]) -> list[str]:
    """Those that a box could not see, for it has directories of its own there."""
    return [place for place in places if place.startswith(COVERED)]


def interpreter_paths(python: str) -> list[str]:
    """Where an interpreter and its packages lie: virtual environments and links on the way, and at its end the installation.

    What lies beside a link, or where an interpreter was installed into, is not shown: that may be somebody's home.
    """
    places, link = [], os.path.abspath(python)
    while os.path.islink(link):
        prefix = os.path.dirname(os.path.dirname(link))
        place = prefix if os.path.exists(os.path.join(prefix, "pyvenv.cfg")) else link
        places += [place, os.path.realpath(place)] if place == prefix else [place]  # the directory may be a link itself
        link = os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
    return [*dict.fromkeys([*places, *_installation(link)])]


def _installation(executable: str) -> list[str]:
    prefix = os.path.dirname(os.path.dirname(executable))
    if any(
        os.path.exists(os.path.join(prefix, name)) for name in ("pyvenv.cfg", "conda-meta")
    ):  # a directory made for nothing else
        return [prefix]
    return [executable, *(os.path.join(prefix, name) for name in ("lib", "lib64", "include"))]
