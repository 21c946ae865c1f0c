"""What differs between the databases a ledger may live in: connecting, beginning, and which errors mean "down"; and SQLite.

PostgreSQL is in `postgres`.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

BUSY_TIMEOUT_MS = 5000  # only a backup tool can hold the file against us; chosen


class Database(ABC):
    """Connections of one ledger: a pool to read with, one connection to write with.

    `writing`, `disconnect` and `close` are for the writer thread, or for when it has ended.

    Attributes:
        name: for messages; holds no password.
        remedy: what to do when it cannot be opened.
        insert: the dialect's own INSERT, which knows ON CONFLICT.
    """

    name: str
    remedy: str
    engine: sa.Engine
    insert: Callable[[sa.Table], Any]
    _connection: sa.Connection | None = None

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction on the writing connection, committed at the end."""
        if self._connection is None:
            self._connection = self.connect()
        with self._connection.begin():
            yield self._connection

    def disconnect(self) -> None:
        """Drop every connection, whatever state they are in; new ones are made as needed."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
        self.engine.dispose()

    def close(self) -> None:
        """Close the connections in order."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.engine.dispose()

    @abstractmethod
    def connect(self) -> sa.Connection:
        """Open the connection to write with."""

    @abstractmethod
    def is_down(self, error: sa.exc.DBAPIError) -> bool:
        """Whether the database, and not the statement, is at fault."""

    @abstractmethod
    def reason(self, error: BaseException | None) -> str:
        """What the driver's error means, for people who may not be the operator."""

    @abstractmethod
    def explain(self, error: BaseException | None) -> str:
        """As `reason`, with all there is to know."""


class SQLite(Database):
    """A file in the data directory, for its owner's eyes only."""

    remedy = "restore it from a backup, or move it away to start anew"
    insert = staticmethod(sqlite.insert)

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        path.chmod(0o600)
        self.name = str(path)
        self.engine = sa.create_engine(f"sqlite:///{path}")
        sa.event.listen(self.engine, "connect", _prepare)
        sa.event.listen(self.engine, "begin", _begin)

    def connect(self) -> sa.Connection:
        return self.engine.connect().execution_options(atlas_immediate=True)

    def is_down(self, error: sa.exc.DBAPIError) -> bool:
        return isinstance(error.orig, sqlite3.OperationalError) or type(error.orig) is sqlite3.DatabaseError

    def reason(self, error: BaseException | None) -> str:
        return str(error)

    def explain(self, error: BaseException | None) -> str:
        return str(error)


def _prepare(connection: sqlite3.Connection, _record: Any) -> None:  # SQLAlchemy's connection record
    # We begin transactions ourselves: sqlite3's own handling begins late and would break BEGIN IMMEDIATE.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("atlas_immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
