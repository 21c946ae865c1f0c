"""The SQL ledger: one writer thread that commits in groups, migrated at start; SQLite by default, PostgreSQL by URL.

Not covered: two servers on one SQLite file (the data directory's lock keeps them apart), and a PostgreSQL behind a pooler that
gives each transaction another connection (the lock that keeps servers apart belongs to a connection).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
import structlog
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from atlas.errors import BadRequest, LedgerUnavailable, OperatorError
from atlas.store.database import Database
from atlas.store.written import Written

T = TypeVar("T")
Item = TypeVar("Item")
GROUP_LIMIT = 512  # works in one commit: bounds how long one waits for its neighbours; chosen
GATHER_S = 0.005  # that a busy writer lets works gather before it begins: a commit costs as much as ten works; measured
CHECK_TIMEOUT_S = 5.0  # a commit that takes longer than this is as good as none
RETRY_AFTER_S = 5.0  # chosen; a full disk or a restarting server takes about as long

UNFIT = (sa.exc.DataError, UnicodeEncodeError, OverflowError)

log = structlog.get_logger("atlas.store")


class _Job(NamedTuple):
    run: Callable[[sa.Connection, Sequence[Any]], Sequence[Any]]  # any item type, the same as `item`
    item: Any
    future: Written[Any]


class Ledger:
    """Transactions on the ledger.

    All works that wait when the writer thread comes round share one transaction and one fsync. If one of them raises, all are
    rolled back and each runs again alone, so a work may run twice and must touch nothing but its connection. What was asked for
    is written whether or not anybody waits for its future.

    A ledger that cannot be written fails the works of that group with `LedgerUnavailable` and is tried again by the next.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._queue: queue.SimpleQueue[Sequence[_Job] | None] = queue.SimpleQueue()
        self._asking = threading.RLock()
        self._bundle: list[_Job] | None = None  # what is asked for together, up to now
        self._is_closed = False
        self._is_down = False
        self._writer = threading.Thread(target=self._serve, name="ledger", daemon=True)
        self._writer.start()

    def migrate(self) -> None:
        """Bring the tables to this version's shape.

        Raises:
            OperatorError: the ledger cannot be used, or was written by a newer version.
        """
        try:
            self.write(_upgrade).result()
        except CommandError:
            raise OperatorError(
                f"{self.database.name} was written by a newer version of ATLAS; install that, or start with another --data-dir"
            ) from None
        except LedgerUnavailable as error:
            raise OperatorError(
                f"{self.database.name}: {self.database.explain(error.__cause__)}; {self.database.remedy}"
            ) from None

    def write(self, work: Callable[[sa.Connection], T]) -> Written[T]:
        """Run `work` in the writer thread, committed when the future is done, rolled back if it raises."""
        return self.batch(_run_each, work)

    def batch(self, run: Callable[[sa.Connection, Sequence[Item]], Sequence[T]], item: Item) -> Written[T]:
        """Have `run` called with all waiting items that name it, in order; each future gets its own result.

        Works of different `run`s in one group may change places: wait for the first where the order matters. If `run` raises, it
        is called again with each item alone.
        """
        future: Written[T] = Written()
        with self._asking:
            if self._is_closed:
                future.set_exception(LedgerUnavailable("the ledger is closed: the server is stopping"))
            elif self._bundle is None:
                self._queue.put((_Job(run, item, future),))
            else:
                self._bundle.append(_Job(run, item, future))
        return future

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is asked for within goes into one commit, the first first. Others cannot ask meanwhile: do nothing else within."""
        with self._asking:
            bundle = self._bundle = []
            try:
                yield
            finally:
                self._bundle = None
                if bundle:
                    self._queue.put(bundle)

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` here, on a snapshot.

        Raises:
            LedgerUnavailable: the ledger cannot be read.
            BadRequest: a value is one that the database cannot hold.
        """
        try:
            with self.database.engine.connect() as connection, connection.begin():
                return work(connection)
        except sa.exc.DBAPIError as error:
            if self.database.is_down(error):
                raise self._unavailable(error) from error.orig
            raise _blamed(error) from error
        except UNFIT as error:
            raise _blamed(error) from error

    def close(self) -> None:
        """Finish the writes that were asked for, then close the connections."""
        with self._asking:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        self._writer.join()
        self.database.close()

    def _serve(self) -> None:
        is_busy = False
        while (asked := self._queue.get()) is not None:
            group = [*asked]
            is_last = False
            if is_busy:
                time.sleep(GATHER_S)
            while len(group) < GROUP_LIMIT and not self._queue.empty():  # this thread alone takes from it
                following = self._queue.get()
                if following is None:
                    is_last = True
                    break
                group += following
            is_busy = len(group) > len(asked)
            self._commit(group)
            if is_last:
                return

    def _commit(self, group: list[_Job]) -> None:
        try:
            results = self._run(group)
        except sa.exc.DBAPIError as error:
            if self.database.is_down(error):
                self._fail(group, error)
            else:
                self._commit_alone(group, error)
        except Exception as error:  # whatever a work raises belongs to whoever asked for it
            self._commit_alone(group, error)
        else:
            if self._is_down:
                self._is_down = False
                log.info("ledger.recovered")
            for job, result in results:
                job.future.set_result(result)

    def _commit_alone(self, group: list[_Job], error: Exception) -> None:
        if len(group) == 1:
            group[0].future.set_exception(_blamed(error))
            return
        for job in group:
            self._commit([job])

    def _run(self, group: list[_Job]) -> list[tuple[_Job, Any]]:
        by_run: dict[Callable[[sa.Connection, Sequence[Any]], Sequence[Any]], list[_Job]] = {}
        for job in group:
            by_run.setdefault(job.run, []).append(job)
        results: list[tuple[_Job, Any]] = []
        with self.database.writing() as connection:
            for run, jobs in by_run.items():
                results += zip(jobs, run(connection, [job.item for job in jobs]), strict=True)
        return results

    def _fail(self, group: list[_Job], error: sa.exc.DBAPIError) -> None:
        """Every work of the group fails: what is wrong is the ledger. The next group tries it afresh."""
        self.database.disconnect()
        if not self._is_down:
            self._is_down = True
            log.error("ledger.unavailable", reason=str(error.orig))
        for job in group:
            job.future.set_exception(self._unavailable(error))

    def _unavailable(self, error: sa.exc.DBAPIError) -> LedgerUnavailable:
        unavailable = LedgerUnavailable(
            f"the ledger cannot be used just now ({self.database.reason(error.orig)}); nothing that is accounted for can begin",
            retry_after_s=RETRY_AFTER_S,
        )
        unavailable.__cause__ = error.orig
        return unavailable


def _blamed(error: Exception) -> Exception:
    """Whose fault an error is, as far as that can be told: NUL in a text or an enormous number came from outside."""
    return BadRequest("a value holds characters or numbers that cannot be stored") if isinstance(error, UNFIT) else error


def _run_each(connection: sa.Connection, works: Sequence[Callable[[sa.Connection], Any]]) -> list[Any]:
    return [work(connection) for work in works]


def _upgrade(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
