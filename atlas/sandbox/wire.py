"""The protocol between the pool and its clients: MessagePack in frames, on a Unix socket that only this user can open."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec

from atlas.settings import LogSettings, SandboxSettings
from atlas.types import Execution, Program, RunLimits, SandboxStatus

HEADER = struct.Struct("!I")
MESSAGE_LIMIT_BYTES = 128 * 1024 * 1024


class PoolConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool is started with.

    Attributes:
        is_unsafe: run without isolation where there is none to be had.
    """

    settings: SandboxSettings
    log: LogSettings = LogSettings()
    is_unsafe: bool = False


class Run(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """Run a program; answered by Done with an Execution, or Failed."""

    id: int
    program: Program
    limits: RunLimits


class AskStatus(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """How the pool is; answered by Done with a SandboxStatus."""

    id: int


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """End what was asked under this id; there is no answer any more."""

    id: int


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The answer."""

    id: int
    execution: Execution | None = None
    status: SandboxStatus | None = None


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """What went wrong, by the code of an error in `errors.py`."""

    id: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


Question = Run | AskStatus | Cancel
Answer = Done | Failed


class Connection(asyncio.Protocol):
    """One end: whole messages in, whole messages out."""

    def __init__(self, expected: Any, on_message: Callable[[Any], None], on_close: Callable[[], None]) -> None:
        self._decoder = msgspec.msgpack.Decoder(expected)
        self._encoder = msgspec.msgpack.Encoder()
        self._on_message = on_message
        self._on_close = on_close
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_close()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            if length > MESSAGE_LIMIT_BYTES:
                self.close()
                return
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            message = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            self._hear(message)

    def _hear(self, message: bytes) -> None:
        try:
            value = self._decoder.decode(message)
        except msgspec.MsgspecError:  # another version of this program at the other end
            self.close()
            return
        self._on_message(value)

    def send(self, message: Question | Answer) -> None:
        """Send whole; a connection that is gone drops it, and has said so by `on_close`."""
        if self._transport is not None:
            body = self._encoder.encode(message)
            self._transport.write(HEADER.pack(len(body)) + body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
