"""How workers come in: by a Unix socket on this machine; by a WebSocket on the HTTP port, with a key of scope `worker`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from litestar import Response, get

from atlas import control
from atlas.errors import BadRequest
from atlas.gateway.exchange import HTTPRequest, exchange_of
from atlas.gateway.worker_calls import Conversation
from atlas.gateway.workers import Workers
from atlas.server import TAKE_OVER
from atlas.workline import PATH, STREAM_BYTES, LengthFrames, WebSocketFrames, accepted


@get(PATH, opt={"access": "worker"}, include_in_schema=False)
async def connect_worker(request: HTTPRequest) -> Response[None]:
    """The worker's end of the line; it returns when the line is closed.

    Raises:
        BadRequest: whoever asks is no worker.
    """
    exchange = exchange_of(request)
    key, version = (exchange.headers.get(f"sec-websocket-{name}", "") for name in ("key", "version"))
    extensions: Any = request.scope.get("extensions") or {}
    take_over = extensions.get(TAKE_OVER)
    if take_over is None or not key or version != "13":
        raise BadRequest("this is the way in for `atlas worker`, which asks for a WebSocket of version 13")
    exchange.status = 101
    lines = ("HTTP/1.1 101 Switching Protocols", "upgrade: websocket", "connection: Upgrade")
    head = "\r\n".join((*lines, f"sec-websocket-accept: {accepted(key)}", "", ""))
    reader, writer = take_over(head.encode("latin-1"), limit_bytes=STREAM_BYTES)
    workers: Workers = request.app.state.workers
    await Conversation(workers, WebSocketFrames(reader, writer, is_client=False), is_near=False).run()
    return Response(None)


@asynccontextmanager
async def near_workers(workers: Workers, path: Path | None) -> AsyncIterator[None]:
    """Take workers of this machine, if there is a place for them to come to."""
    if path is None:
        yield
        return

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if control.is_owner(writer.get_extra_info("socket")):
            await Conversation(workers, LengthFrames(reader, writer), is_near=True).run()
        writer.close()

    server = await asyncio.start_unix_server(serve_one, sock=control.listen(path), limit=STREAM_BYTES)
    try:
        yield
    finally:
        server.close()
