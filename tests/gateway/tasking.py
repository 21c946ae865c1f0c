"""Servers with a task journal, a sandbox, and a worker that really solves what is submitted."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec

from atlas.engine import Engine, ScriptedEngine
from atlas.gateway import GatewayDeps
from atlas.ralph import Tools, solve_task
from atlas.sandbox import Sandbox
from atlas.store import Ending, Journal, Lease, Store, open_journal
from atlas.types import Event, Request, Run, RunClosed
from tests.gateway.conftest import MODEL, Running, deps_of, new_store, serving
from tests.gateway.sandboxes import new_sandbox, started
from tests.store.live.conftest import Server

RIGHT = "Here:\n```python\ndef f(x):\n    return x + 1\n```\n"
WRONG = "Here:\n```python\ndef f(x):\n    return x - 1\n```\n"
TASK: dict[str, Any] = {"task": "Write f(x), which adds one.", "tests": "assert f(1) == 2\nassert f(5) == 6\n", "k": 2}


class Worker:
    """Leases tasks and solves them, one at a time, in the loop of a server."""

    def __init__(self, journal: Journal, engine: Engine, sandbox: Sandbox) -> None:
        self._journal = journal
        self._tools = Tools(generate=engine.submit, run=sandbox.run)
        self._task = asyncio.ensure_future(self._work())

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task  # raises what a worker should not

    async def _work(self) -> None:
        while True:
            if lease := await self._journal.lease("w1", wait_s=5.0):
                await self._one(lease)

    async def _one(self, lease: Lease) -> None:
        journal, delivery = self._journal, lease.delivery
        await journal.heartbeat(delivery)
        solving = asyncio.ensure_future(self._solve(lease))
        stopped = asyncio.ensure_future(journal.until_stopped(delivery))
        beating = asyncio.ensure_future(self._beat(lease))
        try:
            await asyncio.wait([solving, stopped], return_when=asyncio.FIRST_COMPLETED)
            ending = solving.result() if solving.done() else Ending(outcome="cancelled", reason="stopped")
            await journal.finish(delivery, ending)
        finally:
            for each in (solving, stopped, beating):
                each.cancel()
            await asyncio.gather(solving, stopped, beating, return_exceptions=True)

    async def _beat(self, lease: Lease) -> None:
        while True:
            await asyncio.sleep(lease.lease_s / 4)
            await self._journal.heartbeat(lease.delivery)

    async def _solve(self, lease: Lease) -> Ending:
        run: Run | None = None
        async for event in solve_task(msgspec.json.decode(lease.body, type=Request), self._tools):
            await self._journal.put_event(lease.delivery, msgspec.json.encode(event))
            run = event.run if isinstance(event, RunClosed) else run
        assert run is not None
        return Ending(outcome="done", result=msgspec.json.encode(run), sandbox_s=run.sandbox_s)


@dataclass
class Tasking:
    """A server under test, its journal, and the worker if there is one."""

    running: Running
    journal: Journal
    redis: Server
    path: Path

    def http(self, **headers: str) -> httpx.Client:
        return self.running.http(**headers)

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.running.loop).result(30)

    def submit(self, **changes: Any) -> str:
        with self.http() as http:
            reply = http.post("/v1/tasks", json=TASK | changes)
        assert reply.status_code == 202, reply.text
        task_id: str = reply.json()["id"]
        return task_id

    def task(self, task_id: str, **query: Any) -> dict[str, Any]:
        with self.http() as http:
            reply = http.get(f"/v1/tasks/{task_id}", params=query)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def closed(self, task_id: str, **query: Any) -> dict[str, Any]:
        """The task, once it is closed."""
        with self.http() as http:
            http.get(f"/v1/tasks/{task_id}/events", timeout=60)  # which ends when the task is closed
        return self.task(task_id, **query)

    def start_worker(self) -> Worker:
        deps = self.running.deps
        engine, sandbox = deps.engine(), deps.sandbox
        assert engine is not None
        assert sandbox is not None

        async def start() -> Worker:
            return Worker(self.journal, engine, sandbox)

        worker: Worker = self.call(start())
        return worker


def new_journal(store: Store, redis: Server, path: Path) -> Journal:
    """A journal of its own in this Redis."""
    return open_journal(store.tasks, redis.url, blobs=path / "blobs", namespace=f"test{uuid.uuid4().hex[:8]}")


@contextmanager
def opened(journal: Journal, running: Running) -> Iterator[None]:
    """The journal, ready, and in the end closed where the server lives."""

    def call(coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, running.loop).result(30)

    call(journal.reconcile())
    yield
    call(journal.close())


@contextmanager
def tasking(
    redis: Server, path: Path, replies: Sequence[str] = (RIGHT,), *, delay_s: float = 0.0, has_worker: bool = True, **changes: Any
) -> Iterator[Tasking]:
    """A server whose model says `replies` in turn."""
    store = changes.pop("store", None)
    with ExitStack() as stack:
        if store is None:
            store = new_store(path)
            stack.callback(store.close)
        journal = new_journal(store, redis, path)
        engine = ScriptedEngine(replies, model=MODEL, delay_s=delay_s, context_tokens=40_000)
        deps: GatewayDeps = deps_of(engine, store=store, journal=journal, sandbox=new_sandbox())
        deps = replace(deps, **changes)
        extra_routes = changes.pop("extra_routes", ())
        running = stack.enter_context(serving(deps, extra_routes=extra_routes))
        stack.enter_context(started(running))
        stack.enter_context(opened(journal, running))
        server = Tasking(running, journal, redis, path)
        if has_worker:
            worker = server.start_worker()
            stack.callback(lambda: server.call(worker.close()))
        yield server


def events_of(body: str) -> list[tuple[int, str, dict[str, Any]]]:
    """(number, name, data) of each event of a stream."""
    found = []
    for block in body.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append((int(fields.get("id", 0)), fields.get("event", ""), msgspec.json.decode(fields["data"])))
    return found


def decoded(data: dict[str, Any]) -> Event:
    event: Event = msgspec.convert(data, Event)
    return event
