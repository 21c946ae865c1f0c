"""The same view of the files once more, by another mechanism of the kernel: whoever breaks one still meets the other."""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from atlas.sandbox.inside import kernel
from atlas.sandbox.inside.kernel import check

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION = 1  # flag of _CREATE: only tell the version
_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
READ_ONLY = EXECUTE | READ_FILE | READ_DIR
NET_BIND_TCP, NET_CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_RIGHTS_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | _TRUNCATE | _IOCTL_DEVICE  # the others are for directories
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}  # by version; from 5 on 16 rights
_ATTRIBUTE_BYTES = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}  # from 6 on 24: scopes


def version() -> int:
    """The kernel's, 0 if it has none. Only asking tells: the list of security modules in /sys is missing on some kernels."""
    return max(0, int(kernel.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION)))


def restrict(read_only: list[str], writable: list[str], devices: list[str], *, deny_network: bool = False) -> None:
    """Let this process and all it will start reach these paths only; needs no_new_privs.

    `deny_network` is for boxes without a network namespace: no TCP at all (from version 4).

    Raises:
        OSError: the kernel has no Landlock, or a path is missing.
    """
    now = version()
    rights = all_rights(now)
    network = NET_BIND_TCP | NET_CONNECT_TCP if deny_network else 0
    ruleset = _create(attributes(now, rights=rights, network=network))
    for paths, allowed in ((read_only, READ_ONLY), (writable, rights), (devices, WRITE_FILE | READ_FILE)):
        for path in paths:
            _allow(ruleset, path, allowed)
    _enter(ruleset)


def all_rights(kernel_version: int) -> int:
    """Every right on files that this version can take away."""
    return _FILE_RIGHTS.get(kernel_version, (1 << 16) - 1)


def scope_signals() -> None:
    """Let this process and all it will start send signals to each other only; needs no_new_privs and version 6.

    Raises:
        OSError: the kernel's Landlock is older.
    """
    _enter(_create(struct.pack("QQQ", 0, 0, SCOPE_SIGNALS)))


def attributes(kernel_version: int, *, rights: int, network: int) -> bytes:
    """What landlock_create_ruleset takes, as long as that version of it."""
    whole = struct.pack("QQQ", rights, network, SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS)
    return whole[: _ATTRIBUTE_BYTES.get(kernel_version, 24)]


def _create(packed: bytes) -> int:
    return check(kernel.syscall(_CREATE, packed, ctypes.c_size_t(len(packed)), 0), "landlock_create_ruleset")


def _enter(ruleset: int) -> None:
    check(kernel.syscall(_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if rights & ~_RIGHTS_OF_FILES and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _RIGHTS_OF_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        check(kernel.syscall(_ADD, ruleset, _PATH_BENEATH, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(descriptor)
