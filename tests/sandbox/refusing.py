"""Becomes a command on a machine that refuses some system calls, as containers and security modules do.

python -m tests.sandbox.refusing NAME,NAME COMMAND...
"""

from __future__ import annotations

import errno
import os
import sys

from atlas.sandbox.inside import kernel, seccomp

# name: (x86-64, aarch64)
CALLS: seccomp.Table = {
    "landlock_create_ruleset": (444, 444),
    "mount_setattr": (442, 442),
    "pivot_root": (155, 41),
    "seccomp": (317, 277),
}


def refuse(names: list[str]) -> None:
    """For this process and all it starts."""
    program = seccomp.begin(kernel.MACHINE)
    for name in names:
        number = CALLS[name][seccomp.COLUMNS[kernel.MACHINE]]
        assert number is not None
        program += seccomp.refuse_if(seccomp.IF_EQUAL, number, errno.EPERM)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.Filter([*program, seccomp.ALLOWED]).install()


if __name__ == "__main__":
    refuse([name for name in sys.argv[1].split(",") if name])
    os.execv(sys.argv[2], sys.argv[2:])
