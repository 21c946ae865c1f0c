"""Answers as server-sent events, and what happens when nobody listens any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
from litestar.response import Stream

from atlas.engine import Group
from atlas.gateway.exchange import HTTPRequest
from atlas.types import Delta

PING = b": ping\n\n"  # a comment: clients skip it, proxies see life
DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

_Item = tuple[int, Delta] | None  # None: one group has nothing more
_encoder = msgspec.json.Encoder()


def event(payload: msgspec.Struct, *, name: str = "") -> bytes:
    """One event; `name` is for dialects that name theirs."""
    prefix = f"event: {name}\n".encode() if name else b""
    return prefix + b"data: " + _encoder.encode(payload) + b"\n\n"


def event_stream(events: AsyncIterator[bytes]) -> Stream:
    return Stream(events, media_type="text/event-stream", headers=HEADERS, status_code=200)


async def paced(groups: Sequence[Group], *, ping_interval_s: float) -> AsyncIterator[tuple[int, Delta] | None]:
    """(position of the group, Delta) as they come, and None whenever nothing came for `ping_interval_s`.

    Raises what made a group fail.
    """
    queue: asyncio.Queue[_Item] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(group, position, queue)) for position, group in enumerate(groups)]
    left = len(pumps)
    try:
        while left:
            try:
                item = await _next(queue, ping_interval_s)
            except TimeoutError:
                yield None
                continue
            if item is not None:
                yield item
                continue
            left -= 1
        await asyncio.gather(*pumps)  # raises what a group failed with
    finally:
        for pump in pumps:
            pump.cancel()


async def _next(queue: asyncio.Queue[_Item], timeout_s: float) -> _Item:
    if queue.qsize():
        return queue.get_nowait()
    async with asyncio.timeout(timeout_s):
        return await queue.get()


async def _pump(group: Group, position: int, queue: asyncio.Queue[_Item]) -> None:
    try:
        async for delta in group:
            queue.put_nowait((position, delta))
    finally:
        queue.put_nowait(None)


@asynccontextmanager
async def on_disconnect(request: HTTPRequest, act: Callable[[], None]) -> AsyncIterator[None]:
    """Call `act` if the client goes away while the body of this `with` waits. The request's body must have been read."""
    task = asyncio.create_task(_watch(request, act))
    try:
        yield
    finally:
        task.cancel()


async def _watch(request: HTTPRequest, act: Callable[[], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    act()
