"""How messages of `messages.py` travel: behind their length on a Unix socket, as binary messages of a WebSocket elsewhere.

The WebSocket (RFC 6455) is as much of one as two ends of ours need: binary messages, in fragments if somebody in between makes
some, ping, pong and close; no extensions, no texts, nothing larger than the protocol's messages.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import secrets
import struct
from typing import Protocol

from atlas.workline.messages import MESSAGE_LIMIT_BYTES

LENGTH = struct.Struct("!I")
PATH = "/internal/worker"
STREAM_BYTES = 1 << 18
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x2, 0x8, 0x9, 0xA
_CONTROL_BYTES = 125


class BadFrame(ConnectionError):
    """The other end does not speak as it should; the connection is of no use any more."""


class Frames(Protocol):
    """One end of a connection. Reading and writing raise OSError (ConnectionError) when it is broken."""

    async def read(self) -> bytes | None:
        """The next message; None when the other end has closed."""

    async def write(self, message: bytes) -> None:
        """Send whole; waits while the other end does not read."""

    def close(self) -> None:
        """Idempotent; does not wait."""


class LengthFrames:
    """On a Unix socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self) -> bytes | None:
        try:
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            _check_length(length)
            return await self._reader.readexactly(length)
        except asyncio.IncompleteReadError:
            return None

    async def write(self, message: bytes) -> None:
        _check_length(len(message))
        self._writer.write(LENGTH.pack(len(message)) + message)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


class WebSocketFrames:
    """After the handshake. The client's frames are masked, and the server's are not, as the standard has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_client: bool) -> None:
        self._reader, self._writer = reader, writer
        self._is_client = is_client

    async def read(self) -> bytes | None:
        parts: list[bytes] = []
        while True:
            try:
                is_last, kind, payload = await self._frame(room=MESSAGE_LIMIT_BYTES - sum(map(len, parts)))
            except asyncio.IncompleteReadError:
                return None
            if kind == _CLOSE:
                self._send(_CLOSE, payload[:2])
                return None
            if kind == _PING:
                self._send(_PONG, payload)
            elif kind != _PONG:
                if (kind == _CONTINUATION) != bool(parts):
                    raise BadFrame("fragments of a WebSocket message are out of order")
                parts.append(payload)
                if is_last:
                    return b"".join(parts)

    async def write(self, message: bytes) -> None:
        _check_length(len(message))
        self._send(_BINARY, message)
        await self._writer.drain()

    def close(self) -> None:
        if not self._writer.is_closing():
            self._send(_CLOSE, b"\x03\xe8")  # 1000: done
            self._writer.close()

    async def _frame(self, *, room: int) -> tuple[bool, int, bytes]:
        """One frame: whether it is the last of its message, its kind, its unmasked payload."""
        first, second = await self._reader.readexactly(2)
        kind, length = first & 0x0F, second & 0x7F
        if first & 0x70 or kind not in (_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG):
            raise BadFrame(f"a WebSocket frame begins with {first:#x}")
        if bool(second & 0x80) == self._is_client:
            raise BadFrame("only a client masks its WebSocket frames")
        if kind >= _CLOSE and (length > _CONTROL_BYTES or not first & 0x80):
            raise BadFrame("a WebSocket control frame is too long, or in fragments")
        if length > _CONTROL_BYTES:
            length = int.from_bytes(await self._reader.readexactly(2 if length == 126 else 8), "big")
        if kind < _CLOSE:
            _check_length(length, room)
        mask = b"" if self._is_client else await self._reader.readexactly(4)
        payload = await self._reader.readexactly(length)
        return bool(first & 0x80), kind, _masked(payload, mask) if mask else payload

    def _send(self, kind: int, payload: bytes) -> None:
        size = len(payload)
        mask_bit = 0x80 if self._is_client else 0
        if size <= _CONTROL_BYTES:
            head = bytes([0x80 | kind, mask_bit | size])
        elif size < 1 << 16:
            head = bytes([0x80 | kind, mask_bit | 126]) + size.to_bytes(2, "big")
        else:
            head = bytes([0x80 | kind, mask_bit | 127]) + size.to_bytes(8, "big")
        if self._is_client:
            mask = os.urandom(4)
            head, payload = head + mask, _masked(payload, mask)
        self._writer.write(head + payload)


def new_key() -> str:
    """A client's Sec-WebSocket-Key."""
    return base64.b64encode(secrets.token_bytes(16)).decode()


def accepted(key: str) -> str:
    """What a server answers to it."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def _check_length(length: int, room: int = MESSAGE_LIMIT_BYTES) -> None:
    if length > room:
        raise BadFrame(f"a message of {length} bytes; {MESSAGE_LIMIT_BYTES} are the most")


def _masked(payload: bytes, mask: bytes) -> bytes:
    """Each byte XOR its byte of the mask, as one number: as fast as Python can."""
    size = len(payload)
    pattern = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pattern, "big")).to_bytes(size, "big")
