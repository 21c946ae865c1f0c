"""PostgreSQL as the ledger's database, over psycopg 3 (the extra `postgres`)."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from atlas.errors import OperatorError, SettingsError
from atlas.store.database import Database

LOCK_KEY = 0x41544C4153  # "ATLAS"; one server per database
LOCK_TIMEOUT_MS = 5000  # a server that was killed is forgotten within this
CONNECT_ARGS = {
    "application_name": "atlas",
    "connect_timeout": 5,
    # a server whose machine vanished is noticed in about 25 s instead of hours; chosen
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_REASONS = {
    "25006": "PostgreSQL is read-only",
    "53100": "PostgreSQL's disk is full",
    "53300": "PostgreSQL has no connections left",
    "55P03": "another ATLAS server uses this database",
}


class Postgres(Database):
    """A database of its own, or one shared with strangers to our tables; for one ATLAS server at a time.

    The lock that says so belongs to the writing connection, so a server that lost that connection cannot write on beside another.
    """

    remedy = "check ledger.url, and that this database is there and no other server uses it"
    insert = staticmethod(postgresql.insert)

    def __init__(self, url: str) -> None:
        """Does not connect yet.

        Raises:
            SettingsError: the URL is not one of PostgreSQL.
            OperatorError: the driver is not installed.
        """
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError:
            parsed = sa.URL.create("")
        if parsed.drivername not in ("postgresql", "postgresql+psycopg", "postgres"):
            raise SettingsError("ledger.url: not a PostgreSQL URL; it looks like postgresql://USER:PASSWORD@HOST:5432/DATABASE")
        self.name = parsed.set(drivername="postgresql").render_as_string(hide_password=True)
        try:
            self.engine = sa.create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                isolation_level="REPEATABLE READ",  # reads see one snapshot, as with SQLite
                pool_pre_ping=True,
                connect_args=CONNECT_ARGS,
            )
        except ModuleNotFoundError:
            raise OperatorError("ledger.url: PostgreSQL needs a driver; run `pip install 'atlas-server[postgres]'`") from None

    def connect(self) -> sa.Connection:
        connection = self.engine.connect()
        try:
            with connection.begin():
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK_KEY})")
                # "on disk" is what the futures promise; a server set to something stronger keeps that
                connection.exec_driver_sql(
                    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def is_down(self, error: sa.exc.DBAPIError) -> bool:
        is_fault = isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
        return is_fault or error.connection_invalidated or _sqlstate(error.orig) in _REASONS

    def reason(self, error: BaseException | None) -> str:
        return _REASONS.get(_sqlstate(error), "PostgreSQL does not answer")

    def explain(self, error: BaseException | None) -> str:
        return f"{self.reason(error)} ({str(error).strip()})"


def _sqlstate(error: BaseException | None) -> str:
    return getattr(error, "sqlstate", None) or ""
