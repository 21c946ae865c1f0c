"""A server with tasks: its own ledger and journal, limits in a real Redis, a real sandbox, a place for workers to come to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from atlas.engine import Engine, ScriptedEngine
from atlas.errors import Unavailable
from atlas.gateway.submissions import solve_submission
from atlas.ralph import WorkerOptions, read_event, read_run
from atlas.ralph.dial import local, remote
from atlas.ralph.held import Held
from atlas.ralph.line import Line
from atlas.ralph.worker import ended
from atlas.settings import LimitSettings, LogSettings, QueueSettings, Settings, TaskSettings
from atlas.store import Journal, Submission, Submitted, Task, TaskEvent, open_journal, open_live
from atlas.types import Event, Limits, Principal, Request, Route, Run, Usage, VisibleTests
from atlas.workline import AskLease, Leased
from tests.gateway.conftest import KEY, MODEL, Running, deps_of, new_store, serving, wait_for
from tests.gateway.sandboxes import new_sandbox, started
from tests.store.live.conftest import Server

T = TypeVar("T")
WAIT_S = 60.0
RIGHT = "```python\ndef double(x):\n    return 2 * x\n```\n"
WRONG = "```python\ndef double(x):\n    return x + 1\n```\n"
TASK = Request(
    task="Write double(x).",
    tests=VisibleTests(code="assert double(4) == 8\nassert double(0) == 0"),
    route=Route(k=1, max_attempts=3),
)


@dataclass
class Shop:
    """A server under test, and its workers."""

    running: Running
    journal: Journal
    path: Path
    keys: dict[str, str] = field(default_factory=dict)  # texts of keys by their ids
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def engine(self) -> ScriptedEngine:
        return self.running.engine

    @property
    def owner(self) -> Principal:
        return self.running.deps.store.keys.verify(KEY)

    @property
    def socket(self) -> Path:
        assert self.running.deps.worker_socket is not None
        return self.running.deps.worker_socket

    def key(self, *scopes: Any) -> str:
        """A new key of the owner's."""
        return self.running.deps.store.keys.mint("a key", scopes=scopes).key

    def limited(self, **limits: int) -> Principal:
        """The owner by a key with limits."""
        store = self.running.deps.store
        minted = store.keys.mint("limited", limits=Limits(**limits))
        self.keys[minted.info.id] = minted.key
        return store.keys.verify(minted.key)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.running.loop).result(WAIT_S)

    # -- tasks --

    def submit(self, request: Request = TASK, who: Principal | None = None, **options: Any) -> str:
        changes = {name: options.pop(name) for name in ("max_deliveries", "body") if name in options}
        submission = solve_submission(request, who or self.owner, self.running.deps.settings.tasks, **options)
        return self.do(self._insist(msgspec.structs.replace(submission, **changes))).task.id

    async def _insist(self, submission: Submission) -> Submitted:
        """Until it is taken: Redis may just have been started again."""
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(Unavailable):
                    return await self.journal.submit(submission)
                await asyncio.sleep(0.1)

    def task(self, task_id: str) -> Task:
        return self.do(self.journal.get(task_id))

    def closed(self, task_id: str, timeout_s: float = WAIT_S) -> Task:
        wait_for(lambda: self.task(task_id).is_closed, timeout_s)
        return self.task(task_id)

    def run_of(self, task_id: str) -> Run:
        run = read_run(self.do(self.journal.result(task_id)))
        assert run is not None
        return run

    def events(self, task_id: str) -> list[Event]:
        """Of a closed task."""

        async def read() -> list[Event]:
            return [read_event(one.body) async for one in self.journal.events(task_id) if isinstance(one, TaskEvent)]

        return self.do(read())

    def usage(self, task_id: str) -> list[Usage]:
        """Rows of the ledger, oldest first."""
        found = self.running.deps.store.usage.recent(limit=1000)
        return [usage for usage in reversed(found) if usage.request_id.startswith(task_id)]

    # -- workers --

    def start_worker(self, **options: Any) -> subprocess.Popen[bytes]:
        """A process as the server starts it."""
        wanted = {
            "socket": str(self.socket),
            "parent_pid": os.getpid(),
            "log": LogSettings(level="info", format="json"),
            **options,
        }
        text = msgspec.json.encode(WorkerOptions(**wanted)).decode()
        with (self.path / "workers.log").open("ab") as output:
            process = subprocess.Popen([sys.executable, "-m", "atlas.ralph", text], stdout=output, stderr=output)
        self.processes.append(process)
        return process

    def stop_workers(self) -> None:
        for process in self.processes:
            stop(process)

    @contextmanager
    def worker(self, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A process that is ended, in order."""
        process = self.start_worker(**options)
        try:
            yield process
        finally:
            stop(process)

    def line(self, worker: str = "") -> Line:
        """A worker's line, in the loop of the test."""
        return Line(local(self.socket), worker or f"test-{uuid.uuid4().hex[:8]}")

    def far_line(self, key: str) -> Line:
        return Line(remote(self.running.url, key), f"test-{uuid.uuid4().hex[:8]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def open_shop(
    redis: Server, path: Path, engine: Engine | None = None, *, lease_s: float = 15.0, **changes: Any
) -> Iterator[Shop]:
    """A server; `changes` are limits (`slice_tokens`, `prices`), TaskSettings (`tasks`), or fields of GatewayDeps."""
    store = new_store(path)
    namespace = uuid.uuid4().hex
    live = open_live(redis.url, source=store.usage.counts, namespace=namespace)
    journal = open_journal(store.tasks, redis.url, blobs=path / "blobs", lease_s=lease_s, namespace=namespace)
    limits = LimitSettings(slice_tokens=changes.pop("slice_tokens", 256), prices=changes.pop("prices", {}))
    queue = QueueSettings(max_running=changes.pop("max_running", 0))
    settings = Settings(tasks=TaskSettings(lease_s=lease_s, **changes.pop("tasks", {})), limits=limits, queue=queue)
    sandbox = changes.pop("sandbox", None) or new_sandbox()
    fields = {
        "store": store,
        "live": live,
        "journal": journal,
        "limits": limits,
        "queue": queue,
        "settings": settings,
        "sandbox": sandbox,
        "worker_socket": path / "workers.sock",
        **changes,
    }
    with ExitStack() as stack:
        stack.callback(store.close)
        running = stack.enter_context(serving(deps_of(engine or ScriptedEngine([RIGHT], model=MODEL), **fields)))
        stack.callback(lambda: asyncio.run_coroutine_threadsafe(live.close(), running.loop).result(20))
        stack.callback(lambda: asyncio.run_coroutine_threadsafe(journal.close(), running.loop).result(20))
        stack.enter_context(started(running))
        shop = Shop(running, journal, path)
        stack.callback(shop.stop_workers)
        yield shop


@asynccontextmanager
async def connected(line: Line) -> AsyncIterator[Line]:
    """The line, kept while it is used; what ends it is raised."""
    keeping = asyncio.create_task(line.keep())
    try:
        await eventually(lambda: line.num_connections > 0 or keeping.done())
        if keeping.done():
            keeping.result()
        yield line
    finally:
        await ended(keeping)


async def eventually(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Wait in the loop of the test until it holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # it is another thread's, or another process's
            await asyncio.sleep(0.01)


async def leased(line: Line, wait_s: float = 10.0) -> Held:
    """The next task, held by this line."""
    found: Leased | None = None
    for _ in range(20):
        found = (await line.ask(lambda number: AskLease(id=number, wait_s=wait_s), timeout_s=30)).lease
        if found is not None:
            return Held(line, found)
    raise AssertionError("there was no task")


@pytest.fixture(scope="module")
def shop(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One server for all tests of a module; each leaves no task behind."""
    path: Path = tmp_path_factory.mktemp("shop") / "data"
    with open_shop(redis, path) as shop:
        yield shop
