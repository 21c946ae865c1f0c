"""What happens to a task, told to those who follow it while the work goes on: what has come meanwhile travels together."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import structlog

from atlas.errors import AtlasError
from atlas.ralph.ending import shortened
from atlas.ralph.held import Held
from atlas.types import AttemptEnded, Event
from atlas.workline import PutEvents

log = structlog.get_logger("atlas.worker")

EVENT_LIMIT_BYTES = 1024 * 1024
GATHER_S = 0.05  # in which events that follow one another come together; nobody sees the difference (chosen)
MAX_EVENTS = 16  # told in one message: half of what a message may hold
MUTE_S = 5.0  # nothing further is tried for so long after events were not taken; what is not told is in the result


class Teller:
    """Of one delivery."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._untold: list[bytes] = []
        self._telling: asyncio.Task[None] | None = None
        self._mute_until_s = 0.0
        self._is_ending = asyncio.Event()

    def tell(self, event: Event) -> None:
        """Returns at once."""
        if asyncio.get_running_loop().time() < self._mute_until_s:
            return
        self._untold.append(_body(event))
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def rest(self) -> tuple[bytes, ...]:
        """The events that are to go with the end of the task; returns once all others were told."""
        rest, self._untold = self._untold[-MAX_EVENTS:], self._untold[:-MAX_EVENTS]
        await self.told()
        return tuple(rest)

    async def told(self) -> None:
        """Returns once everything was told; from now on, nothing waits for company."""
        self._is_ending.set()
        if self._telling is not None:
            await self._telling

    def stop(self) -> None:
        if self._telling is not None:
            self._telling.cancel()

    async def _tell(self) -> None:
        while self._untold:
            await self._gathered()
            bodies, self._untold = tuple(self._untold[:MAX_EVENTS]), self._untold[MAX_EVENTS:]
            if not bodies:  # they go with the end
                return
            try:
                await self._held.call(PutEvents, bodies=bodies)
            except AtlasError as error:
                self._untold.clear()
                self._mute_until_s = asyncio.get_running_loop().time() + MUTE_S
                log.info("events.not_told", reason=error.message)

    async def _gathered(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S):
                await self._is_ending.wait()


def _body(event: Event) -> bytes:
    body = msgspec.json.encode(event)
    if len(body) > EVENT_LIMIT_BYTES and isinstance(event, AttemptEnded):
        return msgspec.json.encode(msgspec.structs.replace(event, attempt=shortened(event.attempt)))
    return body
