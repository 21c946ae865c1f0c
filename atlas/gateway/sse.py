"""Answers as server-sent events, and what happens when nobody listens any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from litestar.response import Stream
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Send

from atlas.gateway.exchange import Exchange, HTTPRequest

PING = b": ping\n\n"  # a comment: clients skip it, proxies see life
DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
WATCH_AFTER_S = 0.05  # how long a whole answer is made before we look whether its client is still there; chosen
QUEUE_INTERVAL_S = 1.0  # a client in the queue hears of a new position at most this often

_encoder = msgspec.json.Encoder()


def event(payload: msgspec.Struct, *, name: str = "") -> bytes:
    """One event; `name` is for dialects that name theirs."""
    if name:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), _encoder.encode(payload))
    return b"data: %b\n\n" % _encoder.encode(payload)


class EventStream(Stream):
    """Events of one exchange. The engine stops when the client goes away; while it is quiet there are comments.

    There is a chunk for each delta, if an empty one: what came with it is sent then.

    Litestar's own stream cancels its generator instead, wherever that stands, and cannot speak for it while it waits.
    """

    def __init__(self, exchange: Exchange, events: AsyncGenerator[bytes, None], *, ping: bytes = PING) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS, status_code=200)
        self.exchange, self.events, self.ping = exchange, events, ping

    def to_asgi_response(  # type: ignore[override]  # what Litestar passes beside these does not concern a stream of ours
        self, app: None, request: HTTPRequest, *, headers: dict[str, str] | None = None, **_: Any
    ) -> Sending:
        return Sending(self, headers={**(headers or {}), **self.headers})


class Sending(ASGIStreamingResponse):
    """An `EventStream` on its way."""

    __slots__ = ("_exchange", "_is_over", "_last_s", "_loop", "_ping", "_position", "_said", "_send", "_timer")

    iterator: AsyncGenerator[bytes, None]

    def __init__(self, stream: EventStream, *, headers: dict[str, str]) -> None:
        super().__init__(iterator=stream.events, headers=headers, media_type=stream.media_type, status_code=stream.status_code)
        self._exchange, self._ping = stream.exchange, stream.ping
        self._is_over = False
        self._position = 0  # in the queue, as last told
        self._said: asyncio.Task[None] | None = None  # the last comment

    async def send_body(self, send: Send, receive: Receive) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._timer = self._loop.call_later(0, self._speak)
        watching = asyncio.create_task(_watch(receive, self._gone))
        try:
            ready: list[bytes] = []  # what has come together is sent together
            async for chunk in self.iterator:
                ready.append(chunk)
                if not self._exchange.has_more and any(ready):
                    self._last_s = self._loop.time()
                    await send({"type": "http.response.body", "body": b"".join(ready), "more_body": True})
                    ready.clear()
            self._is_over = True
            await send({"type": "http.response.body", "body": b"".join(ready), "more_body": False})
        finally:
            self._is_over = True
            self._timer.cancel()
            watching.cancel()
            await self.iterator.aclose()

    def _gone(self) -> None:
        if not self._is_over:
            self._exchange.abandon()

    def _speak(self) -> None:
        """Say where the request stands if that has changed, else that it lives if nothing was said for long; look again later."""
        ping_interval_s = self._exchange.deps.server.ping_interval_s
        position = self._exchange.queue_position
        if position and position != self._position:
            self._say(b": queued position=%d\n\n" % position)
        elif self._loop.time() - self._last_s >= ping_interval_s:
            self._say(self._ping)
        self._position = position
        wait_s = self._last_s + ping_interval_s - self._loop.time()
        self._timer = self._loop.call_later(min(wait_s, QUEUE_INTERVAL_S) if position else wait_s, self._speak)

    def _say(self, comment: bytes) -> None:
        """Send something between two events, unless the last such thing is still on its way to a slow client."""
        self._last_s = self._loop.time()
        if self._said is None or self._said.done():
            self._said = asyncio.create_task(self._send_comment(comment))

    async def _send_comment(self, comment: bytes) -> None:
        if not self._is_over:
            await self._send({"type": "http.response.body", "body": comment, "more_body": True})


class on_disconnect:  # noqa: N801  # reads as the statement it makes
    """Call `act` if the client goes away while the body of this `with` waits. The request's body must have been read.

    Most answers are there before it is time to look: those are not charged with a task.
    """

    def __init__(self, receive: Receive, act: Callable[[], None]) -> None:
        self._receive, self._act = receive, act
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        self._task = asyncio.create_task(_watch(self._receive, self._act))


async def _watch(receive: Receive, act: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    act()
