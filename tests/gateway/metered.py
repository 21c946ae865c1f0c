"""Servers with everything on: a ledger of their own, limits in a real Redis, keys with limits."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from atlas.engine import Engine, ScriptedEngine
from atlas.gateway.traffic import Traffic
from atlas.settings import LimitSettings, QueueSettings, Settings
from atlas.store import Live, open_live
from atlas.types import Limits, Usage
from tests.gateway.conftest import MODEL, Running, deps_of, new_store, serving, wait_for
from tests.store.live.conftest import Server, binaries

HI = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": HI}
STREAM = CHAT | {"stream": True}


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    """A Redis of this module's own, which tests may stop and start."""
    folder = Path(tempfile.mkdtemp(prefix="atlas-redis-", dir="/tmp"))
    server = Server(next(iter(binaries().values())), folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Metered:
    """A server under test and who uses it."""

    running: Running
    live: Live
    path: Path  # of the data directory
    close: Callable[[], None]  # ends the server; the ledger stays open

    @property
    def engine(self) -> ScriptedEngine:
        return self.running.engine

    @property
    def usage(self) -> list[Usage]:
        """Rows of the ledger, oldest first."""
        return list(reversed(self.running.deps.store.usage.recent(limit=1000)))

    @property
    def one_usage(self) -> Usage:
        [usage] = self.usage
        return usage

    def key(self, **limits: int) -> str:
        """A key with limits of its own."""
        return self.running.deps.store.keys.mint("limited", limits=Limits(**limits)).key

    def http(self, key: str = "", **headers: str) -> httpx.Client:
        return self.running.http(**({"authorization": f"Bearer {key}"} if key else {}) | headers)

    def chat(self, key: str = "", **body: Any) -> httpx.Response:
        with self.http(key) as http:
            return http.post("/v1/chat/completions", json=CHAT | body)

    def call(self, act: Callable[[], Any]) -> Any:
        """Do something in the server's event loop."""

        async def run() -> Any:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self.running.loop).result(20)

    @property
    def traffic(self) -> Traffic:
        return self.running.deps.traffic

    def wait_for_rows(self, count: int = 1) -> list[Usage]:
        """Rows that are written after their clients have gone."""
        wait_for(lambda: len(self.usage) >= count and not self.running.deps.store.usage.open_reservations())
        return self.usage


MeteredServer = Callable[..., Metered]


@pytest.fixture
def metered(redis: Server, tmp_path: Path) -> Iterator[MeteredServer]:
    """metered(replies, delay_s=..., slice_tokens=..., queue=..., engine=..., **deps): a server with all limits on."""
    with ExitStack() as stack:

        def start(
            replies: Sequence[str] = ("Hello world!",),
            *,
            delay_s: float = 0.0,
            slice_tokens: int = 256,
            engine: Engine | None = None,
            **changes: Any,
        ) -> Metered:
            engine = engine or ScriptedEngine(replies, model=MODEL, delay_s=delay_s)
            limits = LimitSettings(slice_tokens=slice_tokens, prices=changes.pop("prices", {}))
            return stack.enter_context(_serving(engine, redis, tmp_path / uuid.uuid4().hex, limits=limits, **changes))

        yield start


@contextmanager
def _serving(engine: Engine, redis: Server, path: Path, **changes: Any) -> Iterator[Metered]:
    store = new_store(path)
    live = open_live(redis.url, source=store.usage.counts, namespace=uuid.uuid4().hex)
    with ExitStack() as ending:
        ending.callback(store.close)
        server = ExitStack()
        ending.callback(server.close)
        running = server.enter_context(serving(deps_of(engine, store=store, live=live, **changes)))
        server.callback(lambda: asyncio.run_coroutine_threadsafe(live.close(), running.loop).result(20))
        yield Metered(running, live, path, server.close)


def narrow(slots: int = 1, **changes: Any) -> dict[str, Any]:
    """Settings of a queue with so few slots."""
    queue = QueueSettings(max_running=slots, **changes)
    return {"queue": queue, "settings": Settings(queue=queue)}
