"""Finished prefixes over a restart: a file of cells for each model and way of computing them.

The cells of a token are the same only for the same weights, the same build of llama.cpp and the same attention; a file is named
by all of them, and each entry bears its checksum, so that what does not fit is never read as if it did. It holds the tokens of
prompts: it is readable by its owner alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import structlog

from atlas.engine.host_cache import Entry
from atlas.engine.runner import State

log = structlog.get_logger("atlas.engine")

MAGIC = b"ATLAS prefixes 1\n"
PROBE_BYTES = 4 * 1024 * 1024  # of the weights' beginning and end: with their size, enough to tell files apart (chosen)
HEAD_LIMIT_BYTES = 64 * 1024 * 1024


class Head(msgspec.Struct, frozen=True):
    """What stands before an entry's cells: its tokens as int32, how many bytes follow, and the SHA-256 of all of these."""

    tokens: bytes
    state_bytes: int
    digest: bytes


class PrefixFile:
    """Where the prefixes of one model are kept, computed one way.

    Args:
        folder: made when something is written.
        model: the weights.
        attention: what else decides how cells look.
    """

    def __init__(self, folder: Path, model: Path, *, attention: str) -> None:
        self._path = folder / f"{_fingerprint(model, attention)}.prefixes"

    def read(self) -> list[Entry]:
        """What was written, the one used longest ago first; nothing of a damaged file from where the damage begins."""
        entries: list[Entry] = []
        try:
            with self._path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise ValueError("it is no file of prefixes")
                while (entry := _read_entry(file)) is not None:
                    entries.append(entry)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("prefixes.damaged", path=str(self._path), reason=str(error), kept=len(entries))
        return entries

    def write(self, entries: Iterable[Entry]) -> None:
        """Take the place of what was written before; where the disk refuses, that stays."""
        partial = self._path.with_suffix(".partial")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(MAGIC)
                for entry in entries:
                    _write_entry(file, entry)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            log.warning("prefixes.not_written", path=str(self._path), reason=error.strerror)


def _fingerprint(model: Path, attention: str) -> str:
    digest = hashlib.sha256(f"{version('llama-cpp-python')} {attention} {model.stat().st_size} ".encode())
    with model.open("rb") as file:
        digest.update(file.read(PROBE_BYTES))
        file.seek(max(0, model.stat().st_size - PROBE_BYTES))
        digest.update(file.read(PROBE_BYTES))
    return digest.hexdigest()[:32]


def _write_entry(file: BinaryIO, entry: Entry) -> None:
    tokens = entry.ids.astype("<i4").tobytes()
    head = msgspec.msgpack.encode(Head(tokens, entry.state.nbytes, _digest(tokens, entry.state)))
    file.write(len(head).to_bytes(8, "little") + head)
    entry.state.tofile(file)


def _read_entry(file: BinaryIO) -> Entry | None:
    """The next one; None at the end. Raises ValueError or MsgspecError: it is not as it was written."""
    size = file.read(8)
    if not size:
        return None
    length = int.from_bytes(size, "little")
    if len(size) < 8 or length > HEAD_LIMIT_BYTES:
        raise ValueError("an entry has no proper beginning")
    head = msgspec.msgpack.decode(file.read(length), type=Head)
    if not 0 <= head.state_bytes <= os.fstat(file.fileno()).st_size - file.tell():
        raise ValueError("an entry ends too soon")
    state = np.fromfile(file, np.uint8, head.state_bytes)
    if _digest(head.tokens, state) != head.digest:
        raise ValueError("an entry is not as it was written")
    return Entry(np.frombuffer(head.tokens, "<i4").astype(np.int32), state, 0)


def _digest(tokens: bytes, state: State) -> bytes:
    digest = hashlib.sha256(tokens)
    digest.update(state.data)
    return digest.digest()
