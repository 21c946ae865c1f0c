"""What the header of a GGUF file says: its values and the shapes of its tensors; no weight is read.

llama.cpp reads headers itself, but says what is wrong with one only in its log, and ends the process on some faults. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from atlas.errors import ModelFileError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DIMENSIONS_MAX = 4
STRING, ARRAY = 8, 9
FLOAT32, BOOL = 6, 7
_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    FLOAT32: "f",
    BOOL: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # by type of value

Scalar = str | int | float | bool
T = TypeVar("T")


class Value(NamedTuple):
    """One value of the header and its type's number; of an array only its length is kept."""

    kind: int
    value: Scalar


class Tensor(NamedTuple):
    """Shape as ggml counts it, fastest dimension first, and the number of the type of its numbers."""

    shape: tuple[int, ...]
    kind: int


class Header(NamedTuple):
    """Values and tensors by name."""

    values: dict[str, Value]
    tensors: dict[str, Tensor]

    def text(self, key: str) -> str:
        """A string of the header; empty if there is none of that name, or it is no string."""
        found = self.values.get(key)
        return found.value if found is not None and isinstance(found.value, str) else ""


def read_header(path: Path) -> Header:
    """The header of a file.

    Raises:
        ModelFileError: there is no such file, or it is not a GGUF file, or damaged.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ModelFileError(f"{path} is not a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).header()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from None
    except (struct.error, ValueError, KeyError) as error:
        raise ModelFileError(f"{path} is damaged, or cut short: its header cannot be read ({error})") from None


class _Reader:
    """Goes through a file from its magic on. Reading past the end raises struct.error, so no count in it is trusted."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = len(MAGIC)

    def header(self) -> Header:
        version = self._number("I")
        if version not in VERSIONS:
            raise ValueError(f"version {version}")
        num_tensors, num_values = self._number("Q"), self._number("Q")
        values = dict(self._named(self._value) for _ in range(num_values))
        tensors = dict(self._named(self._tensor) for _ in range(num_tensors))
        return Header(values, tensors)

    def _named(self, read: Callable[[], T]) -> tuple[str, T]:
        name = self._string()
        return name, read()

    def _value(self) -> Value:
        kind = self._number("I")
        if kind == STRING:
            return Value(kind, self._string())
        if kind == ARRAY:
            return Value(kind, self._skip_array())
        return Value(kind, self._number(_FORMATS[kind]))

    def _tensor(self) -> Tensor:
        num_dimensions = self._number("I")
        if num_dimensions > DIMENSIONS_MAX:
            raise ValueError(f"a tensor of {num_dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(num_dimensions))
        kind, _ = self._number("I"), self._number("Q")
        return Tensor(shape, kind)

    def _skip_array(self) -> int:
        kind, length = self._number("I"), int(self._number("Q"))
        if kind == STRING:
            for _ in range(length):
                self._skip(self._number("Q"))
        else:
            self._skip(length * struct.calcsize(_FORMATS[kind]))
        return length

    def _string(self) -> str:
        length: int = self._number("Q")
        start = self._at
        self._skip(length)
        return self._data[start : self._at].decode("utf-8", "replace")

    def _skip(self, num_bytes: int) -> None:
        self._at += num_bytes
        if self._at > len(self._data):
            raise ValueError("it ends too early")

    def _number(self, form: str) -> Any:
        value = struct.unpack_from("<" + form, self._data, self._at)[0]
        self._at += struct.calcsize(form)
        return value
