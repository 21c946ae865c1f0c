"""The HTTP server of the serving process."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import threading
from types import FrameType
from typing import Any, cast
from urllib.parse import unquote

import httptools
import uvicorn
from litestar.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from atlas.settings import ServerSettings

DRAIN_MARGIN_S = 1.0  # beyond the gateway's own cut of open streams
TAKE_OVER = "atlas.take_over"
WHOLE_REPLY = "atlas.whole_reply"  # type of a message, and the extension that says it is understood
EXTENSIONS: dict[str, Any] = {WHOLE_REPLY: {}}
GATHERED_BYTES = 64 * 1024  # as much as a transport takes before it asks to wait
HEADER_BYTES = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])  # that a line of a head may hold (RFC 9110, 5.5)


class Gathering:
    """A transport whose writes of one turn of the event loop leave together: one system call for the head and the body of an
    answer, or for all events of a burst, instead of one each.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pending: list[bytes] = []
        self._num_pending = 0  # bytes

    def write(self, data: bytes) -> None:
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(data)
        self._num_pending += len(data)
        if self._num_pending > GATHERED_BYTES:  # so that the transport can say when it has enough
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def release(self) -> asyncio.Transport:
        """The transport itself; nothing is written through this one any more."""
        self._flush()
        return self._transport

    def __getattr__(self, name: str) -> Any:  # the rest is the transport's own
        return getattr(self._transport, name)

    def _flush(self) -> None:
        pending, self._pending, self._num_pending = self._pending, [], 0
        if pending and not self._transport.is_closing():
            self._transport.write(b"".join(pending))


class Cycle(RequestResponseCycle):
    """uvicorn's, but for the head of a reply, whose lines it looks at one by one: 5 % of what a short answer costs.

    Names of headers are in lower case, as ASGI has them. A reply may come whole, as one message of type `WHOLE_REPLY` with
    `status`, `headers` and `body`; how long that is need not be said.
    """

    async def send(self, message: Any) -> None:  # a message of ASGI
        if self.response_started or "status" not in message:
            await super().send(message)
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        headers = [*self.default_headers, *message["headers"]]
        if message["type"] == WHOLE_REPLY:
            body = message["body"]
            headers.append((b"content-length", b"%d" % len(body)))
            self.transport.write(self._head(message["status"], headers) + body)
            self._complete()
        else:
            self.transport.write(self._head(message["status"], headers))

    def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        if lines.translate(None, HEADER_BYTES) != b"\r\n" * len(headers):
            raise RuntimeError("a header of this reply holds a character that would end it, or none that may be there")
        self.response_started, self.waiting_for_100_continue = True, False
        return b"%b%b%b\r\n" % (STATUS_LINE[status], lines, self._framing(status, dict(headers)))

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _framing(self, status: int, headers: dict[bytes, bytes]) -> bytes:
        """Notes how the body will end, and whether the connection does; header lines that have to say so beside these."""
        added = b""
        if b"content-length" in headers:
            self.chunked_encoding, self.expected_content_length = False, int(headers[b"content-length"])
        elif self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding, added = True, b"transfer-encoding: chunked\r\n"
        if headers.get(b"connection") == b"close":
            self.keep_alive = False
        elif not self.keep_alive:
            added += b"connection: close\r\n"
        return added


class HTTPProtocol(HttpToolsProtocol):
    """uvicorn's, over such a transport. A request that asks for a WebSocket is one like any other, whose handler may take the
    connection over: `scope["extensions"][TAKE_OVER]`; uvicorn's own way needs a library and goes past the gate.
    """

    _idle_since_s = math.inf  # by the loop's clock
    _idle_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", Gathering(transport)))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_idle_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._idle_since_s = math.inf

    def on_headers_complete(self) -> None:
        parser, scope = self.parser, cast("dict[str, Any]", self.scope)
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["method"], scope["http_version"] = parser.get_method().decode("ascii"), parser.get_http_version()
        scope["raw_path"], scope["query_string"] = url.path, url.query or b""
        scope["path"] = unquote(path) if "%" in path else path
        scope["extensions"] = EXTENSIONS
        if parser.should_upgrade() and self._get_upgrade() == b"websocket":
            scope["extensions"] = {**EXTENSIONS, TAKE_OVER: self.take_over}
        before, self.cycle = self.cycle, self._cycle()
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:  # it came before the reply to the last one was complete
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _cycle(self) -> Cycle:
        return Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=self.scope["http_version"] != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )

    def on_response_complete(self) -> None:
        """As uvicorn's, but for its timer a reply: here a connection has one, which looks whether it is due."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since_s = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def _close_if_idle(self) -> None:
        self._idle_timer = None  # a connection that is busy gets another one with its reply
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s <= 0:
            self.timeout_keep_alive_handler()
        elif left_s < math.inf:
            self._idle_timer = self.loop.call_later(left_s, self._close_if_idle)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def take_over(self, head: bytes, *, limit_bytes: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection, after `head` has been sent on it; to HTTP it is as if the client had gone."""
        self._stop_idle_timer()
        self.connections.discard(self)
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        transport = cast("Gathering", self.transport).release()
        reader = asyncio.StreamReader(limit=limit_bytes)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        writer = asyncio.StreamWriter(transport, protocol, reader, self.loop)
        writer.write(head)
        return reader, writer

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever asks for an upgrade that is not to be had is answered in HTTP."""


class Server(uvicorn.Server):
    """uvicorn that tells the gateway it is stopping, and does not outlive the time it has for that.

    uvicorn alone waits for open streams for ever; here they are told to end (`draining`), then cut, then left.
    """

    def __init__(self, app: ASGIApp, draining: asyncio.Event, settings: ServerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                ssl_certfile=settings.tls_cert or None,
                ssl_keyfile=settings.tls_key or None,
                proxy_headers=False,  # the gateway believes server.trusted_proxies, and nobody else
                http=HTTPProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s + 0.5),
            )
        )
        self.is_up = asyncio.Event()
        self._draining = draining
        self._loop = asyncio.get_running_loop()
        self._last_moment_s = settings.drain_timeout_s + DRAIN_MARGIN_S + 0.4

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self._loop.call_soon_threadsafe(self._draining.set)
            # A thread of a C library may hold the process; the parent's SIGKILL does not come when the parent is gone.
            last = threading.Timer(self._last_moment_s, os._exit, (0,))
            last.daemon = True
            last.start()
        super().handle_exit(sig, frame)
