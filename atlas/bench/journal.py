"""The file of a bench: what is measured on its first line, then one record a line, each on disk before the next task is begun.

A bench that was cut off goes on where it ended, if all that decides its figures is still the same; a last line that was torn by
the cut is taken away.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from atlas.bench.values import BenchSettings, Cell, Record
from atlas.errors import OperatorError

FILE_NAME = "records.jsonl"


class Journal:
    """Records of one bench, in a folder of its own; one process writes it at a time.

    Args:
        folder: made if it is not there.
        settings: of this bench.

    Raises:
        OperatorError: the folder holds another bench, is being written, or cannot be written.
    """

    def __init__(self, folder: Path, settings: BenchSettings) -> None:
        self._path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OperatorError(f"{self._path}: {error.strerror}") from None
        try:
            self._hold()
            self.records = self._begin(settings)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record: Record) -> None:
        """Write a record; when this returns, it is on disk."""
        self._write(msgspec.json.encode(record) + b"\n")
        self.records.append(record)

    @property
    def done(self) -> set[Cell]:
        """What need not be measured again: everything but what failed through us."""
        return {record.cell for record in latest(self.records) if record.failure is None}

    def close(self) -> None:
        os.close(self._file)

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperatorError(f"{self._path} is being written by another process; wait for it to end") from None

    def _begin(self, settings: BenchSettings) -> list[Record]:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.ftruncate(self._file, len(whole))
        os.lseek(self._file, 0, os.SEEK_END)
        if not whole:
            self._write(msgspec.json.encode(settings) + b"\n")
            return []
        found, records = _parse(whole, self._path)
        _require_same(found, settings, self._path)
        return records

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)


def read_journal(folder: Path) -> tuple[BenchSettings, list[Record]]:
    """What a folder holds, without writing anything; of each cell the latest record.

    Raises:
        OperatorError: it is not there, or no bench.
    """
    path = folder / FILE_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}; `atlas bench list` shows what there is") from None
    settings, records = _parse(content[: content.rfind(b"\n") + 1], path)
    return settings, latest(records)


def latest(records: Sequence[Record]) -> list[Record]:
    """Of each cell its last record: what failed through us may have been tried again."""
    return list({record.cell: record for record in records}.values())


def _parse(content: bytes, path: Path) -> tuple[BenchSettings, list[Record]]:
    head, *lines = content.split(b"\n")
    try:
        settings = msgspec.json.decode(head, type=BenchSettings)
        return settings, [msgspec.json.decode(line, type=Record) for line in lines if line]
    except msgspec.DecodeError as error:
        raise OperatorError(f"{path} is not the record of a bench: {error}") from None


def _require_same(found: BenchSettings, wanted: BenchSettings, path: Path) -> None:
    names = [name for name in found.__struct_fields__ if getattr(found, name) != getattr(wanted, name)]
    if not names:
        return
    changes = "; ".join(f"{name} was {_short(getattr(found, name))}, is {_short(getattr(wanted, name))}" for name in names)
    raise OperatorError(f"{path} was begun with other settings ({changes}); go on with the same, or give another --name")


def _short(value: Any) -> str:
    return msgspec.json.encode(value).decode()[:200]
