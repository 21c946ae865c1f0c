"""A real server on a real socket: every test here speaks HTTP to it."""

from __future__ import annotations

import asyncio
import atexit
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import uvicorn
import uvloop
from anthropic import Anthropic
from openai import OpenAI

from atlas.directory import DataDirectory
from atlas.engine import Engine, ScriptedEngine
from atlas.gateway import GatewayDeps, ModelInfo, Readiness, create_app
from atlas.server import HTTPProtocol
from atlas.settings import LedgerSettings, ServerSettings
from atlas.store import Store, open_store
from tests.ledgers import ledger_url

KEY = "sk-test-preset-1"  # the preset key of `new_store`; it belongs to the owner
MODEL = "scripted"


class TwoModels:
    """One model is loaded, another one only registered."""

    def loaded_id(self) -> str | None:
        return MODEL

    def ids(self) -> Sequence[str]:
        return [MODEL, "other"]

    def info(self, model_id: str) -> ModelInfo | None:
        return ModelInfo(id=model_id, created=1_700_000_000, context_tokens=32768 if model_id == "other" else 0)


@cache
def shared_store() -> Store:
    """One real ledger for every server that is not given its own; it lives as long as the tests."""
    folder = TemporaryDirectory(prefix="atlas-tests-")
    atexit.register(folder.cleanup)
    store = new_store(Path(folder.name))
    atexit.register(store.close)  # runs first
    return store


def new_store(path: Path, **options: Any) -> Store:
    """A fresh ledger; its owner holds KEY."""
    directory = DataDirectory(path).create()
    directory.hold()
    return open_store(directory, settings=LedgerSettings(url=ledger_url()), preset_key=KEY, **options)


def deps_of(engine: Engine | None, **changes: object) -> GatewayDeps:
    store = changes.pop("store", None) or shared_store()
    assert isinstance(store, Store)
    deps = GatewayDeps(engine=lambda: engine, models=TwoModels(), store=store, readiness=lambda: Readiness(status="ready"))
    return replace(deps, **changes)  # type: ignore[arg-type]  # names are checked by dataclasses.replace


@dataclass
class Running:
    """A server under test; `loop` is where its engine and its events live."""

    url: str
    deps: GatewayDeps
    loop: asyncio.AbstractEventLoop
    clients: ExitStack  # closed with the server

    @property
    def engine(self) -> ScriptedEngine:
        engine = self.deps.engine()
        assert isinstance(engine, ScriptedEngine)
        return engine

    def http(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {KEY}"} | headers, timeout=60)

    def openai(self) -> OpenAI:
        return self.clients.enter_context(OpenAI(base_url=self.url + "/v1", api_key=KEY, max_retries=0, timeout=60))

    def anthropic(self) -> Anthropic:
        return self.clients.enter_context(Anthropic(base_url=self.url, api_key=KEY, max_retries=0, timeout=60))

    def drain(self) -> None:
        self.loop.call_soon_threadsafe(self.deps.draining.set)


@contextmanager
def serving(deps: GatewayDeps, *, extra_routes: Sequence[Any] = ()) -> Iterator[Running]:
    """`deps` behind uvicorn on a free port, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(deps, extra_routes),
        http=HTTPProtocol,
        ws="none",
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=3,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listener])

    def run() -> None:  # on uvloop as in production; asyncio's own loop leaves Nagle on for a socket made elsewhere: 40 ms each
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: server.started)
    try:
        with ExitStack() as clients:
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", deps, loops[0], clients)
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> float:
    """Seconds until `condition` holds."""
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < timeout_s, "condition never held"
        time.sleep(0.005)
    return time.monotonic() - start_s


Scripted = Callable[..., Running]


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis may take its time, as it does on a busy machine; suites of faults are about what happens then."""
    if not request.module.__name__.endswith("_faults"):
        for name in ("live.TIMEOUT_S", "journal.TIMEOUT_S", "live_trust.WAIT_S"):
            monkeypatch.setattr(f"atlas.store.{name}", 30.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A ledger of this test's own."""
    store = new_store(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """scripted(replies, delay_s=..., **deps): a server whose model says `replies`, in turn."""
    with ExitStack() as stack:

        def start(replies: Sequence[str] = ("Hello world!",), *, delay_s: float = 0.0, **changes: object) -> Running:
            engine = ScriptedEngine(replies, model=MODEL, delay_s=delay_s)
            return stack.enter_context(serving(deps_of(engine, **changes)))

        yield start


def quick_pings(**changes: object) -> ServerSettings:
    return ServerSettings(ping_interval_s=0.05, **changes)  # type: ignore[arg-type]  # checked by msgspec
