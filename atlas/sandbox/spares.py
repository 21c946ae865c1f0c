"""Boxes prepared ahead: a fresh interpreter takes ten milliseconds to start, and can do so before anybody asks for it.

A spare is a box like any other, behind all its layers, whose interpreter waits for its order. It has seen no job before it is
taken, and is taken for one only, whose limits are those it was made with. There is one for each kind of run that was asked for a
moment ago; whoever finds none, or one that has died, gets a box of the ordinary kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog
from msgspec.structs import replace

from atlas.errors import SandboxUnavailable
from atlas.sandbox.boxes import BoxSpec
from atlas.sandbox.supervision import Box
from atlas.sandbox.zygotes import Ended, Zygote

log = structlog.get_logger("atlas.sandbox")

IDLE_S = 20.0  # then a spare is ended
WAITING, GO = b"?", b"!"  # as inside/fresh.py has them

Key = tuple[object, ...]


class Running(NamedTuple):
    """A box on its way."""

    job: int
    zygote: Zygote
    box: Box
    ending: asyncio.Future[Ended]


class Spare:
    """One of them, and our ends of the files it will read: its order and its stdin."""

    def __init__(self, running: Running, order: int, stdin: int) -> None:
        self.running = running
        self._order = order
        self._stdin = stdin
        self._ready = running.box.hear_word()

    async def begin(self, order: bytes, spec: BoxSpec) -> None:
        """Let it do this, once it waits for it.

        Raises:
            OSError: it is gone.
        """
        try:
            if await self._ready != WAITING:
                raise BrokenPipeError
            _write(self._order, order)
            _write(self._stdin, spec.stdin)
            self.running.box.take(spec, GO)
        finally:
            self.close()

    def close(self) -> None:
        for descriptor in (self._order, self._stdin):
            os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    """Instead of what is there; the position, which the box shares, stays at the start."""
    os.ftruncate(descriptor, 0)
    position, view = 0, memoryview(content)
    while position < len(view):
        position += os.pwrite(descriptor, view[position:], position)


class Spares:
    """Those that wait. Used from one event loop.

    Args:
        make: makes one that waits.
        most: how many may wait at the same time.
    """

    def __init__(self, make: Callable[[BoxSpec], Awaitable[Spare]], *, most: int) -> None:
        self._make = make
        self._most = most
        self._waiting: dict[Key, Spare] = {}  # the oldest comes first
        self._making: dict[Key, asyncio.Task[None]] = {}
        self._ending: dict[Spare, asyncio.Future[None]] = {}

    @staticmethod
    def fits(spec: BoxSpec) -> bool:
        """Whether such a box can be prepared: what must be mounted is not known before."""
        return spec.fresh and not spec.tests and spec.project is None

    async def take(self, spec: BoxSpec, order: bytes) -> Running | None:
        """One that begins with this order, if one is there.

        The next of its kind is on its way by then: whoever asks without a break has two processors start them in turns.
        """
        spare = self._waiting.pop(_key(spec), None)
        if spare is None:
            return None
        self.prepare(spec)
        try:
            await spare.begin(order, spec)
        except OSError:  # it has died
            self._end(spare)
            return None
        except asyncio.CancelledError:
            self._end(spare)
            raise
        return spare.running

    def prepare(self, spec: BoxSpec) -> None:
        """Have one for the next run of this kind, soon."""
        key = _key(spec)
        if self._most and key not in self._waiting and key not in self._making:
            self._making[key] = asyncio.create_task(self._add(key, replace(spec, files={}, stdin=b"", payload={})))

    async def _add(self, key: Key, spec: BoxSpec) -> None:
        try:
            spare = await self._make(spec)
        except SandboxUnavailable as error:  # whoever comes next will hear of it
            log.info("sandbox.not_prepared", reason=error.message)
            return
        finally:
            del self._making[key]
        self._waiting[key] = spare
        spare.running.ending.add_done_callback(lambda _: self._lose(key, spare))
        asyncio.get_running_loop().call_later(IDLE_S, self._drop, key, spare)
        while len(self._waiting) > self._most:
            oldest = next(iter(self._waiting))
            self._drop(oldest, self._waiting[oldest])

    def _drop(self, key: Key, spare: Spare) -> None:
        if self._waiting.get(key) is spare:
            del self._waiting[key]
            spare.close()
            self._end(spare)

    def _lose(self, key: Key, spare: Spare) -> None:
        """It has ended by itself, which nothing that waits should do."""
        if self._waiting.get(key) is spare:
            log.info("sandbox.spare_died")
            self._drop(key, spare)

    def _end(self, spare: Spare) -> None:
        spare.running.box.end("killed")
        self._ending[spare] = asyncio.ensure_future(self._bury(spare))

    async def _bury(self, spare: Spare) -> None:
        with contextlib.suppress(SandboxUnavailable):
            await spare.running.ending
        spare.running.box.close()
        self._ending.pop(spare, None)

    async def close(self) -> None:
        """End them all; returns when nothing of them is left."""
        await asyncio.gather(*self._making.values(), return_exceptions=True)
        for key, spare in list(self._waiting.items()):
            self._drop(key, spare)
        await asyncio.gather(*self._ending.values())


def _key(spec: BoxSpec) -> Key:
    """All that a box is made of before its order comes; the wall time is kept by the pool."""
    return spec.runner, spec.profile, spec.has_keeper, spec.prepare_s, replace(spec.limits, wall_s=0.0)
