"""How a worker reaches its server: the Unix socket of its data directory, or a WebSocket on its HTTP port."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from atlas import __version__
from atlas.control import short_path
from atlas.errors import OperatorError
from atlas.ralph.line import Dial
from atlas.workline import PATH, STREAM_BYTES, Frames, LengthFrames, WebSocketFrames, accepted, new_key

HEAD_BYTES = 16 * 1024
REFUSALS = (400, 401, 403, 404)  # which no patience mends


def local(path: Path) -> Dial:
    """Of the server that holds the data directory in which this socket lies."""

    async def dial() -> Frames:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            with short_path(path) as address:
                await asyncio.get_running_loop().sock_connect(connection, address)
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=STREAM_BYTES)
        except BaseException:
            connection.close()
            raise
        return LengthFrames(reader, writer)

    return dial


def remote(url: str, key: str, *, ca: str = "") -> Dial:
    """Of the server at this address, by a key of scope `worker`; `ca` is the PEM file of its own certificate authority.

    Raises:
        OperatorError: it is no such address, or the file cannot be read.
    """
    place = _place(url)
    context = _context(ca) if place.is_secure else None

    async def dial() -> Frames:
        try:
            reader, writer = await asyncio.open_connection(place.host, place.port, ssl=context, limit=STREAM_BYTES)
        except ssl.SSLCertVerificationError as error:
            raise OperatorError(
                f"the certificate of {place.name} is not trusted here ({error.verify_message}); name its authority with --ca"
            ) from None
        try:
            await _shake_hands(reader, writer, place, key)
        except BaseException:
            writer.close()
            raise
        return WebSocketFrames(reader, writer, is_client=True)

    return dial


class _Place(NamedTuple):
    host: str
    port: int
    path: str
    is_secure: bool

    @property
    def name(self) -> str:
        """As the header `host` has it."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def _place(url: str) -> _Place:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise OperatorError(f"--server {url!r}: an address like https://HOST:PORT is needed")
    is_secure = parts.scheme == "https"
    return _Place(host, port or (443 if is_secure else 80), parts.path.rstrip("/") + PATH, is_secure)


def _context(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca or None)
    except (OSError, ssl.SSLError) as error:
        raise OperatorError(f"--ca {ca}: {error}") from None


async def _shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: _Place, key: str) -> None:
    nonce = new_key()
    lines = (
        f"GET {place.path} HTTP/1.1",
        f"Host: {place.name}",
        f"User-Agent: atlas-worker/{__version__}",
        f"Authorization: Bearer {key}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {nonce}",
    )
    writer.write("\r\n".join((*lines, "", "")).encode("latin-1"))
    await writer.drain()
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise ConnectionError("the server closed the connection") from None
    status, headers = _parsed(head)
    if status == 101 and headers.get("sec-websocket-accept") == accepted(nonce):
        return
    message = await _sentence(reader, headers)
    if status in REFUSALS:
        raise OperatorError(f"{place.name} refuses this worker (HTTP {status}): {message}")
    raise ConnectionError(f"HTTP {status}: {message}")


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
        raise ConnectionError("this is no HTTP server")
    pairs = (line.partition(":") for line in lines if line)
    return int(parts[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


class _Error(msgspec.Struct):
    message: str


class _ErrorReply(msgspec.Struct):
    error: _Error


async def _sentence(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> str:
    """The server's own, if it says one."""
    length = headers.get("content-length", "")
    try:
        body = await reader.readexactly(min(int(length), HEAD_BYTES)) if length.isdigit() else b""
        return msgspec.json.decode(body, type=_ErrorReply).error.message
    except (asyncio.IncompleteReadError, msgspec.MsgspecError):
        return "it does not say why"
