"""Finding the processes of a pool under test, by pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 15.0


def children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):  # it has just ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (thread / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def depth(pid: int) -> int:
    """How many pid namespaces it is in; 1 is ours."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next(len(line.split()) - 1 for line in lines if line.startswith("NSpid:"))


def zygotes(pool: int) -> list[int]:
    """Pids of the pool's fork servers: first processes of a namespace one below ours."""
    own = depth(os.getpid())
    return [pid for launcher in children(pool) for pid in children(launcher) if depth(pid) == own + 1]


def boxes(pool: int) -> list[int]:
    """Pids of whatever runs in boxes of native pools."""
    own = depth(os.getpid())
    return [pid for pid in descendants(pool) if depth(pid) >= own + 2]


def descriptors(pid: int) -> list[int]:
    return [int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()]


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that has no event.

    Raises:
        AssertionError: it did not come.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        await asyncio.sleep(0.01)
