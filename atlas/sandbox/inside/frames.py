"""Frames on a file descriptor: four bytes of length, then one JSON value. No pickle, ever."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

FRAME_LIMIT_BYTES = 16 * 1024 * 1024
HEADER = struct.Struct("!I")


def write_frame(descriptor: int, value: Any) -> None:
    """Write one frame, whole.

    Raises:
        OSError: the other side is gone.
        ValueError: the value is larger than FRAME_LIMIT_BYTES.
    """
    body = json.dumps(value, separators=(",", ":")).encode()
    if len(body) > FRAME_LIMIT_BYTES:
        raise ValueError(f"a value of {len(body)} bytes is more than the {FRAME_LIMIT_BYTES} a frame holds")
    view = memoryview(HEADER.pack(len(body)) + body)
    while view:
        view = view[os.write(descriptor, view) :]


def read_frame(descriptor: int) -> Any:
    """Read one frame.

    Raises:
        EOFError: the other side is gone, or the frame is not one.
    """
    (length,) = HEADER.unpack(_exactly(descriptor, HEADER.size))
    if length > FRAME_LIMIT_BYTES:
        raise EOFError(f"a frame of {length} bytes")
    try:
        return json.loads(_exactly(descriptor, length))
    except ValueError as error:
        raise EOFError(f"not a frame: {error}") from None


def _exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise EOFError("closed")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Channel:
    """Both directions between two boxes, or from a box to the pool (then `receiving` is -1)."""

    def __init__(self, receiving: int, sending: int) -> None:
        self._receiving = receiving
        self._sending = sending

    def send(self, value: Any) -> None:
        write_frame(self._sending, value)

    def receive(self) -> Any:
        return read_frame(self._receiving)
