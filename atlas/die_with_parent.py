"""Runs a program that ends when the process that started it does, even by SIGKILL.

    die_with_parent.py PARENT_PID PROGRAM ARGUMENT...

A program in between, since nothing of ours may run between fork and exec in a process with threads. It is run with -I -S, without
site-packages: 20 ms. The kernel's signal is armed before the parent is checked, so its death cannot go unnoticed; the signal
lasts through exec, except into a set-uid program. Only Linux has it; elsewhere the program outlives a killed parent, and is
replaced at the next start.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent_pid, program = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() == parent_pid:
        os.execv(program, sys.argv[2:])  # noqa: S606 -- that is the point


if __name__ == "__main__":
    main()
