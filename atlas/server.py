"""The HTTP server of the serving process, and how that process ends."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any, cast

import uvicorn
from litestar.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from atlas.settings import ServerSettings

DRAIN_MARGIN_S = 1.0  # beyond the gateway's own cut of open streams
PR_SET_PDEATHSIG = 1
GATHERED_BYTES = 64 * 1024  # as much as a transport takes before it asks to wait


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

    def __getattr__(self, name: str) -> Any:  # the rest is the transport's own
        return getattr(self._transport, name)

    def _flush(self) -> None:
        pending, self._pending, self._num_pending = self._pending, [], 0
        if pending and not self._transport.is_closing():
            self._transport.write(b"".join(pending))


class HTTPProtocol(HttpToolsProtocol):
    """uvicorn's, over such a transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", Gathering(transport)))


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


def die_with(parent_pid: int) -> None:
    """End this process when its parent ends, however that happens.

    The kernel's death signal is armed here rather than before exec, which clears it for some programs; a parent that ended before
    this line is noticed by its pid.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)
