"""What bubblewrap is told, so that a box of it looks like one of ours (view.py); and what it leaves to be done inside."""

from __future__ import annotations

import contextlib
import os

from atlas.sandbox.inside import box, kernel, landlock, seccomp, view

TYPE_CHECKING = False
if TYPE_CHECKING:  # see frames.py
    from collections.abc import Iterator
    from typing import Any

_LIBRARIES = "/etc/ld.so.cache"


def options(
    read_only: list[str], accounts: dict[str, int], limits: dict[str, Any], *, has_proc: bool, has_tests: bool
) -> list[str]:
    """Everything up to the command.

    Args:
        read_only: paths beside the system's own that are seen at the same place.
        accounts: path in the box -> descriptor that its content is read from.
        limits: of RunLimits.
        has_proc: whether there may be a /proc; a container that covers paths in its own gives none.
        has_tests: whether TESTS is written to before the program begins.
    """
    words = "--unshare-all --unshare-user --die-with-parent --new-session --clearenv --as-pid-1 --cap-add ALL --hostname box"
    return [
        *words.split(),
        *("--uid", str(view.BOX_ID), "--gid", str(view.BOX_ID)),
        *_files(read_only),
        *(word for path, descriptor in accounts.items() for word in ("--ro-bind-data", str(descriptor), path)),
        *(("--proc", "/proc") if has_proc else ("--dir", "/proc")),
        *_devices(),
        *_own(limits["disk_bytes"], has_tests=has_tests),
        *("--remount-ro", "/", "--chdir", "/"),
    ]


def _files(read_only: list[str]) -> Iterator[str]:
    for path in view.outermost([*view.SYSTEM, *read_only]):
        yield from ("--symlink", os.readlink(path), path) if os.path.islink(path) else ("--ro-bind", path, path)
    yield from ("--ro-bind", os.path.dirname(os.path.realpath(__file__)), view.PROGRAM)
    yield from ("--ro-bind-try", _LIBRARIES, _LIBRARIES)


def _devices() -> Iterator[str]:
    for path in view.DEVICES:
        yield from ("--dev-bind", path, path)
    for name, target in view.DEVICE_LINKS.items():
        yield from ("--symlink", target, name)


def _own(disk_bytes: int, *, has_tests: bool) -> Iterator[str]:
    for path in (*view.WRITABLE, *((view.TESTS,) if has_tests else ())):
        yield from ("--perms", "0700", "--size", str(disk_bytes), "--tmpfs", path)
    if not has_tests:
        yield from ("--dir", view.TESTS)


def isolate(setup: box.Setup, order: dict[str, Any], kept: list[int]) -> None:
    """The layers that bubblewrap has not made. What needs a capability is done if there is one: under AppArmor there is none."""
    kernel.close_all_but(kept)
    limits = order["limits"]
    _tighten(limits["disk_bytes"], has_proc=setup.has_proc)
    os.umask(0o077)
    os.nice(box.NICENESS)
    os.chdir(view.HOME)
    view.put_files(view.HOME, order["files"])
    if order["tests"]:
        view.put_files(view.TESTS, order["tests"])
        _close_tests(setup.landlock_version)
    kernel.drop_capabilities()
    if setup.landlock_version:
        landlock.restrict(["/"], list(view.WRITABLE), list(view.DEVICES))
    box.limit(limits)
    seccomp.OURS.install()


def _tighten(disk_bytes: int, *, has_proc: bool) -> None:
    """What bubblewrap has no option for, or none in its older versions."""
    box.apply_own_settings()
    with contextlib.suppress(OSError):
        view.mount_proc(has_proc=has_proc)
    with contextlib.suppress(OSError):
        for path in view.WRITABLE:
            view.limit_disk(path, disk_bytes)


def _close_tests(landlock_version: int) -> None:
    try:
        view.close_tests()
    except OSError:
        if not landlock_version:  # which would have closed them too
            raise
