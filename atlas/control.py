"""The control socket: how the command line reaches the server that holds the data directory.

One request per connection, one JSON line each way, over a Unix socket that only its owner may open; the peer's user id is checked
as well. It is not an API for programs: methods and shapes change with the version.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from atlas.errors import AtlasError, OperatorError

Handler = Callable[[dict[str, Any]], Awaitable[Any]]

LINE_LIMIT_BYTES = 1024 * 1024
REQUEST_TIMEOUT_S = 10.0  # a client sends its line at once; the server may be restarting, which takes seconds
_PEERCRED = struct.Struct("3i")  # pid, uid, gid (man 7 unix, SO_PEERCRED)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A method of the running server and its parameters."""

    method: str
    params: dict[str, Any] = {}


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Its result, or why there is none."""

    result: Any = None  # JSON of the method's own shape
    error: str | None = None


def listen(path: Path) -> socket.socket:
    """Bind the control socket, mode 0600. The caller holds the data directory, so a socket lying there is a dead one."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_path(path) as address:
        before = os.umask(0o177)
        try:
            listener.bind(address)
        finally:
            os.umask(before)
    listener.listen(16)
    return listener


def call(path: Path, method: str, params: dict[str, Any] | None = None, *, timeout_s: float = REQUEST_TIMEOUT_S) -> Any:
    """Ask the server that listens at `path`, and wait `timeout_s` for its answer.

    Raises:
        OperatorError: it refused, or did not answer.
        FileNotFoundError, ConnectionRefusedError: no server listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        with short_path(path) as address:
            connection.connect(address)
        try:
            connection.sendall(msgspec.json.encode(Request(method=method, params=params or {})) + b"\n")
            line = connection.makefile("rb").readline(LINE_LIMIT_BYTES)
            reply = msgspec.json.decode(line, type=Reply)
        except (OSError, msgspec.DecodeError):
            raise OperatorError(f"the server behind {path} did not answer; it may be restarting, try again") from None
    if reply.error is not None:
        raise OperatorError(reply.error)
    return reply.result


async def serve_control(listener: socket.socket, handlers: Mapping[str, Handler]) -> asyncio.Server:
    """Answer on `listener` until the server is closed."""

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await _answer(reader, writer, handlers)
            writer.write(msgspec.json.encode(reply) + b"\n")
            await writer.drain()
        except ConnectionError:
            pass  # the client left; nobody is there to be told
        finally:
            writer.close()

    return await asyncio.start_unix_server(serve_one, sock=listener, limit=LINE_LIMIT_BYTES)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handlers: Mapping[str, Handler]) -> Reply:
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            line = await reader.readuntil(b"\n")
        if not is_owner(writer.get_extra_info("socket")):  # asked after reading, so that the refusal finds a listener
            return Reply(error="the control socket serves the owner of the data directory only")
        request = msgspec.json.decode(line, type=Request)
        handler = handlers.get(request.method)
        if handler is None:
            return Reply(error=f"the running server knows no method '{request.method}'; is it another version of ATLAS?")
        return Reply(result=await handler(request.params))
    except AtlasError as error:
        return Reply(error=error.message)
    except (msgspec.MsgspecError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError) as error:
        return Reply(error=f"control request: {error}")


def is_owner(connection: socket.socket) -> bool:
    """Whether the other end of a Unix socket is this user's, or root's."""
    _pid, uid, _gid = _PEERCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return uid in (os.getuid(), 0)


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for `path` that fits the 107 bytes of a socket address, however deep the folder lies."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
