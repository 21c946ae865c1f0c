"""Never more runs than slots, never more waiting than the queue holds; first come, first served."""

from __future__ import annotations

import asyncio
from types import TracebackType

from atlas.errors import SandboxOverloaded

RETRY_AFTER_S = 1.0


class Slots:
    """`async with slots:` waits for one and gives it back."""

    def __init__(self, total: int, *, max_waiting: int) -> None:
        self.total = total
        self.running = 0
        self.waiting = 0
        self._max_waiting = max_waiting
        self._free = asyncio.Semaphore(total)

    async def __aenter__(self) -> None:
        if self.waiting >= self._max_waiting:
            message = f"{self.waiting} runs wait for the sandbox already (sandbox.max_waiting)"
            raise SandboxOverloaded(message, retry_after_s=RETRY_AFTER_S)
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.running -= 1
        self._free.release()
