"""Memory of all processes of a box together, looked at from outside, where no memory cgroup is to be had.

Late by one look: a box can go beyond its limit by what it touches in LOOK_EVERY_S. That, and not a bound of the kernel's, is the
promise of this layer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from atlas.sandbox.supervision import Box
from atlas.sandbox.zygotes import Zygote

LOOK_EVERY_S = 0.02
LOOK_LIMIT_S = 0.05  # that one look may take of the pool's time; what a box has made slow to read is counted at its upper bound
SHARE_OF_LOOKS = 0.1  # of the pool's time, at most, for the looks at one box
PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Buffers of sockets and pipes, and what waits for events, are memory of no process: each descriptor beyond a few is counted
# with what a socket can hold unless it asks for more, which boxes cannot (inside/seccomp.py).
FREE_DESCRIPTORS = 256
DESCRIPTOR_BYTES = 212_992


class MemoryWatch:
    """Looks at boxes that are older than one interval; the short ones, which are most, are never looked at."""

    def __init__(self, find: Callable[[Zygote, int], int] | None = None) -> None:
        self._find = find or find_keeper
        self._boxes: dict[int, tuple[Zygote, Box]] = {}
        self._keepers: dict[int, int] = {}  # job -> pid of the box's first process, as this process sees it
        self._rests: dict[int, float] = {}  # job -> not looked at again before this time
        self._timer: asyncio.TimerHandle | None = None

    def add(self, job: int, zygote: Zygote, box: Box) -> None:
        self._boxes[job] = (zygote, box)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def forget(self, job: int) -> None:
        self._boxes.pop(job, None)
        self._keepers.pop(job, None)
        self._rests.pop(job, None)

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        self._timer = loop.call_later(LOOK_EVERY_S, self._look) if self._boxes else None
        for job, (zygote, box) in list(self._boxes.items()):
            if not box.started_s or now_s - box.started_s < LOOK_EVERY_S or now_s < self._rests.get(job, 0.0):
                continue
            began_s = time.monotonic()
            with contextlib.suppress(OSError):  # it has just ended
                self._check(job, zygote, box)
            self._rests[job] = now_s + (time.monotonic() - began_s) / SHARE_OF_LOOKS

    def _check(self, job: int, zygote: Zygote, box: Box) -> None:
        if job not in self._keepers:
            self._keepers[job] = self._find(zygote, zygote.pids.get(job, 0))
        first = self._keepers[job]
        pids = [*(() if box.spec.has_keeper else (first,)), *descendants(first)]
        box.seen_cpu_s = max(box.seen_cpu_s, sum(map(cpu_s, pids)))  # what is killed takes its account along
        held = max(0, sum(map(num_descriptors, pids)) - FREE_DESCRIPTORS) * DESCRIPTOR_BYTES
        used = held + sum(map(resident_bytes, pids))
        if used > box.spec.limits.memory_bytes:
            used = held + shared_once(pids)
        box.seen_bytes = max(box.seen_bytes, used)
        if used > box.spec.limits.memory_bytes:
            box.end("memory")


def find_keeper(zygote: Zygote, inner_pid: int) -> int:
    """The pid, here, of what is `inner_pid` in the zygote's namespace."""
    assert zygote.pid is not None
    for server in children(zygote.pid):
        for pid in children(server):
            if inner_pids(pid)[1:2] == [inner_pid] or inner_pids(pid)[-2:-1] == [inner_pid]:
                return pid
    raise ProcessLookupError(inner_pid)


def inner_pids(pid: int) -> list[int]:
    """Of one process: its pid in each namespace, the outermost first."""
    line = next(line for line in _read(pid, "status").splitlines() if line.startswith("NSpid:"))
    return [int(word) for word in line.split()[1:]]


def children(pid: int) -> Iterator[int]:
    for thread in (PROC / str(pid) / "task").iterdir():
        yield from map(int, (thread / "children").read_text().split())


def descendants(pid: int) -> Iterator[int]:
    """All below `pid`; orphans belong to the first process of their namespace, so nothing escapes this walk."""
    for child in children(pid):
        yield child
        with contextlib.suppress(OSError):
            yield from descendants(child)


def resident_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(_read(pid, "statm").split()[1]) * PAGE_BYTES
    return 0


def cpu_s(pid: int) -> float:
    """User and system time, of children that were waited for as well."""
    with contextlib.suppress(OSError):
        fields = _read(pid, "stat").rpartition(")")[2].split()  # from the third field on; the second may hold anything
        return sum(map(int, fields[11:15])) / TICKS_PER_S
    return 0.0


def shared_once(pids: list[int]) -> int:
    """Memory of them all; pages that forks share count once, as long as there is time to find out."""
    deadline_s = time.monotonic() + LOOK_LIMIT_S
    return sum(proportional_bytes(pid) if time.monotonic() < deadline_s else resident_bytes(pid) for pid in pids)


def num_descriptors(pid: int) -> int:
    """Open ones; 0 where the kernel does not tell (before Linux 6.2)."""
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "fd").stat().st_size
    return 0


def proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in _read(pid, "smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return resident_bytes(pid)


def _read(pid: int, name: str) -> str:
    return (PROC / str(pid) / name).read_text(encoding="ascii", errors="replace")
