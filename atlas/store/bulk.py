"""Statements over many rows, each one call of the driver: for the few that every request waits for.

A driver gives the interpreter lock away at each row it writes, and in a busy server has to wait to get it back: with a call for
each row that was most of what a commit took. SQLAlchemy makes such statements as well, but anew each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import sqlalchemy as sa

Columns = tuple[str, ...]
Row = Sequence[Any]  # a value for each column, in their order


class Bulk:
    """Of one database; SQLite's and PostgreSQL's SQL are the same here but for the marks of parameters."""

    def __init__(self, dialect: sa.Dialect) -> None:
        self._mark = "?" if dialect.paramstyle == "qmark" else "%s"

    def has_any(self, connection: sa.Connection, table: sa.Table, request_ids: Sequence[str]) -> bool:
        """Whether one of these requests is in the table."""
        sql = f"SELECT 1 FROM {table.name} WHERE request_id IN {self._marks(len(request_ids))} LIMIT 1"  # noqa: S608  # ours
        return connection.exec_driver_sql(sql, tuple(request_ids)).first() is not None

    def delete(self, connection: sa.Connection, table: sa.Table, request_ids: Sequence[str]) -> None:
        sql = f"DELETE FROM {table.name} WHERE request_id IN {self._marks(len(request_ids))}"  # noqa: S608  # a name of ours
        connection.exec_driver_sql(sql, tuple(request_ids))

    def insert(self, connection: sa.Connection, table: sa.Table, columns: Columns, rows: Sequence[Row]) -> int:
        """Those that are new; returns how many they were."""
        return self._run(connection, _insert(table.name, columns) + "%s ON CONFLICT DO NOTHING", rows)

    def add_up(self, connection: sa.Connection, table: sa.Table, columns: Columns, rows: Sequence[Row], *, keys: Columns) -> None:
        """Add to what stands under `keys`; these are different in each row."""
        self._run(connection, _insert(table.name, columns) + "%s " + _adding(table.name, columns, keys), rows)

    def _run(self, connection: sa.Connection, template: str, rows: Sequence[Row]) -> int:
        sql = _filled(template, self._marks(len(rows[0])), len(rows))
        return connection.exec_driver_sql(sql, tuple(chain.from_iterable(rows))).rowcount

    def _marks(self, count: int) -> str:
        return _listed(self._mark, count)


@lru_cache
def _listed(mark: str, count: int) -> str:
    return f"({', '.join([mark] * count)})"


@lru_cache
def _insert(table: str, columns: Columns) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES "  # noqa: S608  # names of ours


@lru_cache
def _adding(table: str, columns: Columns, keys: Columns) -> str:
    sums = (f"{name} = {table}.{name} + excluded.{name}" for name in columns if name not in keys)
    return f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {', '.join(sums)}"


@lru_cache(maxsize=1024)
def _filled(template: str, marks: str, num_rows: int) -> str:
    """The same text object each time, so that the driver finds what it has made of it by its hash."""
    before, _, after = template.partition("%s")
    return before + ", ".join([marks] * num_rows) + after
