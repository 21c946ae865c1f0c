"""The main process of a box, once it stands: its streams, its signals, its runner, its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from typing import Any, NoReturn

from atlas.sandbox.inside import runners
from atlas.sandbox.inside.frames import Channel

THREAD_STACK_BYTES = 8 << 20  # else each thread would take the main one's bound of the address space


def read_order(payload: int) -> dict[str, Any]:
    """What this box is to do, from the start of the file."""
    order: dict[str, Any] = json.loads(os.pread(payload, os.fstat(payload).st_size, 0))
    return order


def perform(run: runners.Runner, payload: dict[str, Any], report: int, peer: list[int]) -> NoReturn:
    """Call the runner and end as an interpreter ends. Never returns."""
    threading.stack_size(THREAD_STACK_BYTES)
    sys.argv = ["main.py"]
    status = run(payload, Channel(-1, report), Channel(*peer) if peer else None)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(status & 0xFF)


def restore_signals() -> None:
    """As an interpreter starts, whatever the one who started this process had ignored: a full disk is an error, not the end."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
