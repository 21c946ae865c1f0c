"""Frames on a file descriptor: four bytes of length, then one JSON value. No pickle, ever.

Imported by every fresh interpreter, where `json`, `os` or `typing` would cost more than everything else together: what writes a
frame is the C half of `json`.
"""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

FRAME_LIMIT_BYTES = 16 * 1024 * 1024
HEADER_BYTES = 4  # big-endian
READ_BYTES = 1 << 20
_c_json: Any = None


def write_frame(descriptor: int, value: Any) -> None:
    """Write one frame, whole.

    Raises:
        OSError: the other side is gone.
        ValueError: the value is larger than FRAME_LIMIT_BYTES.
    """
    json = _c_json or _find_json()
    encoder = json.make_encoder({}, _refuse, json.encode_basestring_ascii, None, ":", ",", False, False, True)  # as json.dumps
    write_body(descriptor, "".join(encoder(value, 0)).encode())


def _find_json() -> Any:
    """The C half of `json`, once: a program that reports nothing needs none."""
    global _c_json
    import _json

    _c_json = _json
    return _json


def _refuse(value: Any) -> NoReturn:
    raise TypeError(f"a {type(value).__name__} is no JSON")


def write_body(descriptor: int, body: bytes) -> None:
    """Write one frame whose JSON is made already."""
    if len(body) > FRAME_LIMIT_BYTES:
        raise ValueError(f"a value of {len(body)} bytes is more than the {FRAME_LIMIT_BYTES} a frame holds")
    view = memoryview(len(body).to_bytes(HEADER_BYTES, "big") + body)
    while view:
        view = view[posix.write(descriptor, view) :]


def read_frame(descriptor: int) -> Any:
    """Read one frame.

    Raises:
        EOFError: the other side is gone, or the frame is not one.
    """
    import json

    length = int.from_bytes(_exactly(descriptor, HEADER_BYTES), "big")
    if length > FRAME_LIMIT_BYTES:
        raise EOFError(f"a frame of {length} bytes")
    try:
        return json.loads(_exactly(descriptor, length))
    except (ValueError, RecursionError) as error:
        raise EOFError(f"not a frame: {error}") from None


def _exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = posix.read(descriptor, min(size, READ_BYTES))
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

    def close(self) -> None:
        posix.close(self._sending)
