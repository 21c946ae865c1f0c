"""Keeps worker processes running beside the server, from the serving process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

import msgspec
import structlog

from atlas.launch import end_process
from atlas.ralph.process import WorkerOptions

log = structlog.get_logger("atlas.workers")

FIRST_BACKOFF_S = 0.1  # doubled with each start that did not last
MAX_BACKOFF_S = 10.0
LASTING_S = 10.0
STOP_S = 3.0  # to give back what it holds


class Workforce:
    """So many workers, each started again whenever it ends. Started from the main thread, which outlives them."""

    def __init__(self, num_workers: int, options: WorkerOptions) -> None:
        self._num_workers, self._options = num_workers, options

    async def keep(self, stopping: asyncio.Event) -> None:
        """Until `stopping` is set; then each gives back what it holds, and is ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._num_workers):
                group.create_task(self._keep_one(stopping))

    async def _keep_one(self, stopping: asyncio.Event) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not stopping.is_set():
            started_s = time.monotonic()
            status = await self._one_life(stopping)
            if stopping.is_set():
                return
            backoff_s = FIRST_BACKOFF_S if time.monotonic() - started_s > LASTING_S else min(2 * backoff_s, MAX_BACKOFF_S)
            log.warning("worker.died", exit_status=status, again_in_s=backoff_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await stopping.wait()

    async def _one_life(self, stopping: asyncio.Event) -> int | None:
        """Exit status of a process; None if there was none."""
        try:
            process = await asyncio.create_subprocess_exec(*self._command(), stdin=asyncio.subprocess.DEVNULL)
        except OSError as error:  # out of processes or memory: tried again after a pause
            log.error("worker.not_started", reason=str(error))
            return None
        ending, order = asyncio.create_task(process.wait()), asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait((ending, order), return_when=asyncio.FIRST_COMPLETED)
        finally:
            order.cancel()
            await end_process(process, timeout_s=STOP_S)
        return await ending

    def _command(self) -> list[str]:
        safely = ["-P"] if sys.flags.safe_path else []
        return [sys.executable, *safely, "-m", "atlas.ralph", msgspec.json.encode(self._options).decode()]
