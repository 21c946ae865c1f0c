"""A whole server with its pages on a real socket, people who sign in to it, and a week of made-up history."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import uvicorn
import uvloop
from openai import OpenAI

from atlas.bench import Runs
from atlas.dashboard import DashboardDeps, create_routes
from atlas.directory import DataDirectory
from atlas.engine import Engine, LoadedModels, ModelRegistry, ScriptedEngine, Upstreams
from atlas.gateway import GatewayDeps, ModelInfo, Readiness, create_app
from atlas.launch import ModelChoice
from atlas.log import RECENT
from atlas.sandbox import Sandbox
from atlas.settings import AuthSettings, EngineSettings, LedgerSettings, LogSettings, RedisSettings, SandboxSettings, Settings
from atlas.store import Live, MintedKey, Store, open_journal, open_store
from atlas.types import Limits, RequestState, Usage, User, UserRole
from tests.ledgers import ledger_url

MODEL = "scripted"
PASSWORD = "correct horse battery"
DAY_S = 86400.0


class OneModel:
    """The catalogue: one model, loaded."""

    def loaded_id(self) -> str | None:
        return MODEL

    def ids(self) -> Sequence[str]:
        return [MODEL]

    def info(self, model_id: str) -> ModelInfo | None:
        return ModelInfo(id=model_id, context_tokens=4096) if model_id == MODEL else None


class Person:
    """A browser without a window: keeps its cookies, follows redirects, sends forms as its pages have them."""

    def __init__(self, url: str, **headers: str) -> None:
        self.http = httpx.Client(base_url=url, headers={"origin": url, **headers}, follow_redirects=True, timeout=60)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(path, headers=headers)

    def csrf(self) -> str:
        found = re.search(r'<meta name="csrf-token" content="([^"]+)">', self.get("/profile").text)
        assert found
        return unescape(found[1])

    def send(self, path: str, **fields: Any) -> httpx.Response:
        """Post a form with the token of the session."""
        return self.http.post(path, data={"csrf": self.csrf(), **fields})

    def sign_in(self, login: str, password: str = PASSWORD) -> httpx.Response:
        return self.http.post("/signin", data={"login": login, "password": password})


@dataclass
class Site:
    """`loop` is where the server lives."""

    url: str
    store: Store
    engine: ScriptedEngine
    gateway: GatewayDeps
    dashboard: DashboardDeps
    loop: asyncio.AbstractEventLoop
    people: list[Person] = field(default_factory=list)

    def anybody(self, **headers: str) -> Person:
        self.people.append(Person(self.url, **headers))
        return self.people[-1]

    def owner(self) -> Person:
        """Set the server up, or sign in where that is done."""
        person = self.anybody()
        if token := self.store.accounts.setup_token():
            form = {"token": token, "username": "ada", "email": "ada@example.org", "password": PASSWORD, "again": PASSWORD}
            assert person.http.post("/setup", data=form).status_code == 200
        else:
            assert person.sign_in("ada").status_code == 200
        return person

    def user(self, username: str, role: UserRole = "member") -> User:
        """Somebody who has accepted an invitation."""
        accounts = self.store.accounts
        invitation = accounts.invite(actor=accounts.owner().id, role=role)
        return accounts.register(invitation.token, username=username, email="", password=PASSWORD, source="127.0.0.1")

    def person(self, username: str, role: UserRole = "member") -> Person:
        """The same, signed in."""
        self.user(username, role)
        person = self.anybody()
        assert person.sign_in(username).status_code == 200
        return person

    def key(self, owner: User | None = None, name: str = "laptop", **options: Any) -> MintedKey:
        owner = owner or self.store.accounts.owner()
        return self.store.keys.mint(name, owner=owner.id, actor=owner.id, **options)

    def openai(self, key: str) -> OpenAI:
        return OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0, timeout=60)

    def ask(self, key: str, text: str = "Hello") -> str:
        """One request by the API; what the model said."""
        with self.openai(key) as client:
            reply = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}])
        return reply.choices[0].message.content or ""

    def run_code(self, key: str, **body: Any) -> httpx.Response:
        """One run in the sandbox by the API."""
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(self.url + "/v1/sandbox/execute", json=body, headers=headers, timeout=60)

    def drain(self) -> None:
        self.loop.call_soon_threadsafe(self.gateway.draining.set)


async def scripted_for(choice: ModelChoice, _settings: EngineSettings) -> Engine:
    """What is loaded, whatever its file."""
    return ScriptedEngine(["Hello there, this is another model."], model=choice.id)


@contextmanager
def open_site(
    folder: Path,
    *,
    replies: Sequence[str] = ("Hello there, this is the model.",),
    delay_s: float = 0.0,
    settings: Settings | None = None,
    live: Live | None = None,
    sandbox: Sandbox | None = None,
    is_unsafe: bool = False,
    redis_url: str = "",
    is_loading: bool = False,
) -> Iterator[Site]:
    """The real store, gateway and dashboard; the engine is scripted. The sandbox, if there is one, is started and closed.

    There are tasks where a Redis is named. With `is_loading` nothing is loaded, and models can be.
    """
    settings = settings or Settings()
    directory = DataDirectory(folder / "data").create()
    directory.hold()
    store = open_store(directory, settings=LedgerSettings(url=ledger_url()), auth=settings.auth, limits=settings.limits)
    engine = ScriptedEngine(replies, model=MODEL, delay_s=delay_s)
    registry = ModelRegistry(folder / "models")
    loaded = LoadedModels(settings.engine, find=registry.find, make=scripted_for) if is_loading else None
    namespace = f"t{uuid4().hex[:8]}"
    journal = open_journal(store.tasks, redis_url, blobs=folder / "blobs", namespace=namespace) if redis_url else None
    gateway = GatewayDeps(
        engine=lambda: engine,
        models=OneModel(),
        store=store,
        live=live,
        readiness=lambda: Readiness(status="ready"),
        settings=settings,
        auth=settings.auth,
        limits=settings.limits,
        sandbox=sandbox,
        journal=journal,
        upstreams=Upstreams(settings.fallback, {}),
        loaded=loaded,
    )

    async def readiness() -> Readiness:
        return gateway.readiness()

    dashboard = DashboardDeps(
        store=store,
        live=gateway.live,
        traffic=gateway.traffic,
        engine=lambda: engine,
        registry=registry,
        loaded=loaded,
        readiness=readiness,
        settings=lambda: settings,
        logs=RECENT,
        draining=gateway.draining,
        sandbox=sandbox,
        journal=journal,
        upstreams=gateway.upstreams,
        benches=Runs(folder / "data"),
        is_unsafe=is_unsafe,
    )
    try:
        with _serving(gateway, dashboard) as (url, loop):
            site = Site(url, store, engine, gateway, dashboard, loop)
            if sandbox is not None:
                asyncio.run_coroutine_threadsafe(sandbox.start(), loop).result(20)
            yield site
            if journal is not None:
                asyncio.run_coroutine_threadsafe(journal.close(), loop).result(20)
            if sandbox is not None:
                asyncio.run_coroutine_threadsafe(sandbox.close(), loop).result(20)
        for person in site.people:
            person.http.close()
    finally:
        store.close()
        directory.release()


@contextmanager
def _serving(gateway: GatewayDeps, dashboard: DashboardDeps) -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(gateway, create_routes(dashboard))
    config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=3, proxy_headers=False)
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listener])

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive())
    assert server.started, "the server did not start"
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", loops[0]
    finally:
        loops[0].call_soon_threadsafe(gateway.draining.set)
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def new_sandbox() -> Sandbox:
    return Sandbox(SandboxSettings(slots=2), log_settings=LogSettings(level="error"))


def run_some(site: Site) -> None:
    """Runs of several outcomes, and one that is refused."""
    key = site.key(name="tests").key
    tests = "from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3\n"
    for code in (
        "def add(a, b): return a + b",
        "def add(a, b): return a + b + 0",
        "def add(a, b): return a - b",
        "def add(a, b:",
    ):
        site.run_code(key, code=code, test_code=tests)
    site.run_code(key, code="print('hello')")
    site.run_code(key, code="while True: pass", timeout=0.2)
    site.run_code(key, code="print(1)", language="cobol")


def wait_for(condition: Any, timeout_s: float = 20) -> None:
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < timeout_s, "condition never held"
        time.sleep(0.01)


def telling_settings() -> Settings:
    """Settings with something to mask and something that differs from its default."""
    return Settings(auth=AuthSettings(session_idle_s=3600.0), redis=RedisSettings(url="redis://atlas:hunter2@localhost:6379/0"))


def fill(site: Site, *, days: int = 8, seed: int = 7) -> dict[str, User]:
    """A small team and its last week, in the ledger."""
    chance = random.Random(seed)
    owner = site.store.accounts.owner()
    team = {"ada": owner, "grace": site.user("grace", "admin"), "linus": site.user("linus"), "margaret": site.user("margaret")}
    site.store.accounts.update(team["linus"].id, actor=owner.id, limits=Limits(tokens_per_day=200_000, requests_per_minute=60))
    names = {"ada": "editor", "grace": "ci", "linus": "laptop", "margaret": "notebook"}
    keys = {user.id: site.key(user, names[name]).info for name, user in team.items()}
    site.store.accounts.invite(actor=owner.id, role="member", email="edsger@example.org")
    site.store.keys.set_active(site.key(team["grace"], "old ci").info.id, False, actor=team["grace"].id)
    site.store.keys.revoke(site.key(owner, "lost laptop").info.id, actor=owner.id)
    now = time.time()
    for number in range(days * 60):
        user = chance.choice(list(team.values()))
        at = now - chance.random() * days * DAY_S
        if not 7 <= time.gmtime(at).tm_hour <= 20 and chance.random() < 0.85:
            continue
        site.store.usage.settle(_event(chance, number, at, user, keys[user.id].id)).result()
    return team


def _event(chance: random.Random, number: int, at: float, user: User, key_id: str) -> Usage:
    state: RequestState = chance.choices(("completed", "aborted", "failed", "interrupted"), (92, 5, 2, 1))[0]
    prompt, completion = int(chance.lognormvariate(6.5, 1)), int(chance.lognormvariate(5, 0.8))
    ttft_s = chance.lognormvariate(-1.6, 0.5)
    return Usage(
        request_id=f"req_{number:024x}",
        at=at,
        owner=user.id,
        key_id=key_id,
        route=chance.choice(("/v1/chat/completions", "/v1/messages", "/v1/responses")),
        model=chance.choices((MODEL, "qwen3-14b"), (4, 1))[0],
        state=state,
        prompt_tokens=prompt,
        cached_tokens=int(prompt * chance.random() * 0.8),
        completion_tokens=completion,
        finish={"completed": "stop", "aborted": "disconnected", "failed": "engine_failed"}.get(state, ""),
        is_streamed=chance.random() < 0.8,
        is_estimated=state == "interrupted",
        queue_s=chance.random() * 0.02,
        ttft_s=ttft_s,
        wall_s=ttft_s + completion * 0.02,
    )
