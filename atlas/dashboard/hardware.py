"""What the machine is doing: NVIDIA GPUs as nvidia-smi sees them, the processor and memory as /proc does.

A reading is taken when somebody looks, at most every two seconds, in a thread: a driver in trouble delays a page, not a request.
Not covered: GPUs of other makers, and systems without /proc; there the strip says so.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

READING_AGE_S = 2.0  # chosen: nvidia-smi takes 20 to 100 ms of a core
TOOL_TIMEOUT_S = 5.0
_FIELDS = ("name", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu", "power.draw")


class GpuReading(NamedTuple):
    """One GPU; None where the driver does not say. `busy` is a share of 1."""

    name: str
    busy: float | None
    used_bytes: float | None
    total_bytes: float | None
    celsius: float | None
    watts: float | None


class Reading(NamedTuple):
    """`cpu_busy` is the share of all cores since the reading before; None at the first one, and without /proc."""

    gpus: tuple[GpuReading, ...]
    cpu_busy: float | None
    num_cores: int
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    process_bytes: float | None


class Hardware:
    """Readings for everyone who watches; used from the event loop only."""

    def __init__(self, *, tool: str | None = None, proc: Path = Path("/proc")) -> None:
        self._tool = tool or shutil.which("nvidia-smi")
        self._proc = proc
        self._ticks: tuple[float, float] | None = None
        self._lock = asyncio.Lock()
        self._last: Reading | None = None
        self._read_at_s = 0.0

    async def read(self) -> Reading:
        async with self._lock:
            if self._last is None or time.monotonic() - self._read_at_s > READING_AGE_S:
                self._last = await asyncio.to_thread(self.take)
                self._read_at_s = time.monotonic()
            return self._last

    def take(self) -> Reading:
        """A reading now; takes as long as the driver does."""
        total, available = self._memory()
        return Reading(
            gpus=self._gpus(),
            cpu_busy=self._cpu_busy(),
            num_cores=os.cpu_count() or 1,
            memory_used_bytes=None if total is None or available is None else total - available,
            memory_total_bytes=total,
            process_bytes=self._process_bytes(),
        )

    def _gpus(self) -> tuple[GpuReading, ...]:
        if self._tool is None:
            return ()
        query = [self._tool, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
        try:
            listing = subprocess.run(query, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired):
            return ()
        return parse_gpus(listing.stdout) if listing.returncode == 0 else ()

    def _cpu_busy(self) -> float | None:
        before, self._ticks = self._ticks, self._cpu_ticks()
        if before is None or self._ticks is None or self._ticks[1] <= before[1]:
            return None
        return 1 - (self._ticks[0] - before[0]) / (self._ticks[1] - before[1])

    def _cpu_ticks(self) -> tuple[float, float] | None:
        """(idle, all) since boot; proc(5): user nice system idle iowait irq softirq steal."""
        line = self._first_line("stat")
        ticks = [float(field) for field in line.split()[1:9]] if line.startswith("cpu ") else []
        return (ticks[3] + ticks[4], sum(ticks)) if len(ticks) >= 5 else None

    def _memory(self) -> tuple[float | None, float | None]:
        """(total, available) bytes."""
        try:
            lines = (self._proc / "meminfo").read_text().splitlines()
        except OSError:
            return None, None
        found = {name: float(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if rest}
        return found.get("MemTotal"), found.get("MemAvailable")

    def _process_bytes(self) -> float | None:
        fields = self._first_line("self/statm").split()
        return float(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else None

    def _first_line(self, name: str) -> str:
        try:
            return (self._proc / name).read_text().partition("\n")[0]
        except OSError:
            return ""


def parse_gpus(listing: str) -> tuple[GpuReading, ...]:
    """nvidia-smi's lines, one per GPU; a field such as "[N/A]" is None."""
    found = []
    for line in listing.splitlines():
        name, *values = [field.strip() for field in line.rsplit(",", len(_FIELDS) - 1)]
        if len(values) == len(_FIELDS) - 1:
            busy, used, total, celsius, watts = (_number(value) for value in values)
            mib = 1024.0**2
            found.append(
                GpuReading(
                    name,
                    None if busy is None else busy / 100,
                    None if used is None else used * mib,
                    None if total is None else total * mib,
                    celsius,
                    watts,
                )
            )
    return tuple(found)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
