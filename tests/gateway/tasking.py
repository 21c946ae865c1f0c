"""Servers with a task journal, a sandbox, and a worker that really solves what is submitted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from atlas.engine import ScriptedEngine
from atlas.gateway import GatewayDeps
from atlas.ralph import WorkerOptions
from atlas.settings import LogSettings
from atlas.store import Journal, Store, open_journal
from atlas.types import Event
from tests.gateway.conftest import MODEL, Running, deps_of, new_store, serving
from tests.gateway.people import People, settle
from tests.gateway.sandboxes import new_sandbox, started
from tests.gateway.workshop import stop
from tests.store.live.conftest import Server

RIGHT = "Here:\n```python\ndef f(x):\n    return x + 1\n```\n"
WRONG = "Here:\n```python\ndef f(x):\n    return x - 1\n```\n"
TASK: dict[str, Any] = {"task": "Write f(x), which adds one.", "tests": "assert f(1) == 2\nassert f(5) == 6\n", "k": 2}


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

    def start_worker(self) -> subprocess.Popen[bytes]:
        """A process as the server starts it."""
        options = WorkerOptions(
            socket=str(self.running.deps.worker_socket), parent_pid=os.getpid(), log=LogSettings(level="warning", format="json")
        )
        with (self.path / "workers.log").open("ab") as output:
            command = [sys.executable, "-m", "atlas.ralph", msgspec.json.encode(options).decode()]
            return subprocess.Popen(command, stdout=output, stderr=output)


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
        deps: GatewayDeps = deps_of(
            engine, store=store, journal=journal, sandbox=new_sandbox(), worker_socket=path / "workers.sock"
        )
        deps = replace(deps, **changes)
        extra_routes = changes.pop("extra_routes", ())
        running = stack.enter_context(serving(deps, extra_routes=extra_routes))
        stack.enter_context(started(running))
        stack.enter_context(opened(journal, running))
        server = Tasking(running, journal, redis, path)
        if has_worker:
            stack.callback(stop, server.start_worker())
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


@pytest.fixture(scope="module")
def server(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tasking]:
    with tasking(redis, tmp_path_factory.mktemp("solving") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def people(server: Tasking) -> People:
    return settle(server.running.deps.store)


@pytest.fixture(scope="module")
def idle(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tasking]:
    """A server without a worker: its tasks wait."""
    with tasking(redis, tmp_path_factory.mktemp("idle") / "data", has_worker=False) as server:
        yield server


@pytest.fixture(scope="module")
def idle_people(idle: Tasking) -> People:
    return settle(idle.running.deps.store)
