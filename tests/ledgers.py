"""PostgreSQL for tests: a private cluster in a temporary folder, or the server that ATLAS_TEST_LEDGER_URL names.

On either, tests work in databases of their own, which are dropped afterwards. The server's role must be allowed to create them.
ATLAS_TEST_REDIS_URL (without a database number) names a Redis for whole servers, each in a database of its own; start it with
`--databases 1000`.
"""

from __future__ import annotations

import atexit
import os
import pwd
import secrets
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import redis
import sqlalchemy as sa

SERVER_URL = os.environ.get("ATLAS_TEST_LEDGER_URL", "")
REDIS_URL = os.environ.get("ATLAS_TEST_REDIS_URL", "").rstrip("/")


def postgres_binaries() -> Path | None:
    """Folder of the newest PostgreSQL on this machine."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


class Cluster:
    """A PostgreSQL of our own on a Unix socket, without TCP. As root it runs as `postgres` or `nobody`: initdb refuses root."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="atlas-pg-"))
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            user = next(user for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody"))
            self._prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        self._run("initdb", "-D", "data", "-A", "trust", "-U", "atlas", "-N")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://atlas@/postgres?host={self._folder}"

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c max_connections=50"
        self._run("pg_ctl", "start", "-w", "-D", "data", "-l", "log", "-o", options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-D", "data", "-m", "immediate")

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children notice and end."""
        pid_file = self._folder / "data" / "postmaster.pid"
        postmaster = int(pid_file.read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        while _is_running(postmaster):
            time.sleep(0.01)
        pid_file.unlink()  # where nobody reaps it, its pid would seem to be alive
        (self._folder / ".s.PGSQL.5432.lock").unlink()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _run(self, name: str, *arguments: str) -> None:
        with (self._folder / "output").open("ab") as output:  # a pipe would be held open by the server it starts
            done = subprocess.run(
                [*self._prefix, str(self._binaries / name), *arguments],
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        assert done.returncode == 0, "".join(path.read_text() for path in self._folder.glob("[ol]*"))


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """A new, empty database on the server; its URL, good for `ledger.url`."""
    name = f"atlas_test_{secrets.token_hex(6)}"
    server = sa.create_engine(_with_driver(server_url), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield sa.make_url(server_url).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def _with_driver(url: str) -> sa.URL:
    return sa.make_url(url).set(drivername="postgresql+psycopg")


def ledger_url() -> str:
    """A ledger for a test that does not care which: empty (SQLite), or a fresh database on ATLAS_TEST_LEDGER_URL."""
    if not SERVER_URL:
        return ""
    database = fresh_database(SERVER_URL)
    atexit.register(database.__exit__, None, None, None)
    return database.__enter__()


@cache
def server_environ(data_dir: Path) -> dict[str, str]:
    """Where the server of a data directory keeps ledger and limits: beside itself, or on the servers that tests were told of."""
    environ = {"ATLAS_LEDGER_URL": url} if (url := ledger_url()) else {}
    if REDIS_URL:
        environ["ATLAS_REDIS_URL"] = f"{REDIS_URL}/{_next_redis_database()}"
    return environ


def _next_redis_database() -> int:
    """Number of an empty database that no other server uses, of other test processes neither; 0 is left to namespaces."""
    with redis.Redis.from_url(REDIS_URL) as server:
        last = int(server.config_get("databases")["databases"]) - 1
        number = int(server.incr("atlas-tests:databases")) % last + 1
    with redis.Redis.from_url(f"{REDIS_URL}/{number}") as database:
        database.flushdb()
    return number


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Somebody else holds the write lock of a ledger in a file: it cannot be written until they let go."""
    with closing(sqlite3.connect(data_dir / "atlas.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
