"""The SQL ledger: one file, one writer thread, migrated at start."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from atlas.errors import OperatorError

T = TypeVar("T")
BUSY_TIMEOUT_MS = 5000  # only a backup tool can hold the file against us; chosen


class Ledger:
    """Transactions on the ledger file.

    Writes run one after another in one thread, each in its own BEGIN IMMEDIATE, so they never meet a lock half-way. Reads run in
    the caller's thread and see a snapshot.
    """

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        path.chmod(0o600)
        self._path = path
        self._engine = sa.create_engine(f"sqlite:///{path}")
        sa.event.listen(self._engine, "connect", _prepare)
        sa.event.listen(self._engine, "begin", _begin)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")

    def migrate(self) -> None:
        """Bring the tables to this version's shape.

        Raises:
            OperatorError: the file is no ledger, or was written by a newer version.
        """
        try:
            self.write(_upgrade).result()
        except CommandError:
            raise OperatorError(
                f"{self._path} was written by a newer version of ATLAS; install that version, or start with another --data-dir"
            ) from None
        except sa.exc.DatabaseError as error:
            raise OperatorError(f"{self._path}: {error.orig}; restore it from a backup, or move it away to start anew") from None

    def write(self, work: Callable[[sa.Connection], T]) -> Future[T]:
        """Run `work` in the writer thread, committed when the future is done, rolled back if it raises."""
        return self._writer.submit(self._transaction, work, immediate=True)

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` here, on a snapshot."""
        return self._transaction(work, immediate=False)

    def close(self) -> None:
        """Finish the writes that were asked for, then close the file."""
        self._writer.shutdown(wait=True)
        self._engine.dispose()

    def _transaction(self, work: Callable[[sa.Connection], T], *, immediate: bool) -> T:
        with self._engine.connect().execution_options(atlas_immediate=immediate) as connection, connection.begin():
            return work(connection)


def _prepare(connection: sqlite3.Connection, _record: Any) -> None:  # SQLAlchemy's connection record
    # We begin transactions ourselves: sqlite3's own handling begins late and would break BEGIN IMMEDIATE.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("atlas_immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _upgrade(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
