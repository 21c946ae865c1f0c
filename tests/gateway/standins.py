"""A server whose model has stand-ins: other servers, on real sockets, that say what a test tells them to."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from atlas.engine import ScriptedEngine, Upstreams
from atlas.engine.breaker import Breaker
from atlas.settings import FallbackSettings, LimitSettings, Price, Settings, UpstreamSettings
from tests.engine.peer import DONE, USAGE, Peer, chat, event
from tests.gateway.conftest import MODEL
from tests.gateway.metered import Metered, _serving
from tests.store.live.conftest import Server

HI = [{"role": "user", "content": "hi"}]
HELLO: list[bytes | float] = [
    chat({"role": "assistant", "content": ""}),
    chat({"content": "Hello"}),
    chat({}, finish="stop"),
    USAGE,
    DONE,
]
PLAIN: list[bytes | float] = [event({"choices": [{"text": "Hello", "finish_reason": "stop"}]}), USAGE, DONE]
CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CHAINS = {
    "best": ("near/m", "next/m"),
    "other": ("near/m", "next/m"),  # registered, not loaded
    "gone-first": ("gone/m", "near/m"),
    "elsewhere": ("gone/m", "far/m"),
    "dear": ("gone/m", "next/m", "near/m"),
    "home": ("near/m", MODEL),
}
PRICES = {"near/m": Price(prompt=1.0, completion=2.0), "next/m": Price(prompt=1000.0, completion=1000.0)}


@contextmanager
def peer_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own: the peers' machine."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    assert not thread.is_alive()
    loop.close()


@contextmanager
def peer_on(loop: asyncio.AbstractEventLoop) -> Iterator[Peer]:
    """One of them, whose `url` is on loopback."""
    peer = Peer()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(peer.serve, "127.0.0.1", 0)

    async def stop(server: asyncio.Server) -> None:
        server.close()
        server.close_clients() if hasattr(server, "close_clients") else None
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
    peer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield peer
    finally:
        asyncio.run_coroutine_threadsafe(stop(server), loop).result(20)


@dataclass
class Standing:
    """A server with stand-ins: `near` and `next` on this machine, `far` elsewhere as far as its address tells."""

    server: Metered
    near: Peer
    next: Peer
    far: Peer

    def reset(self) -> None:
        """All peers well, all breakers closed, nothing asked yet."""
        for peer in (self.near, self.next, self.far):
            peer.replies = {CHATS: (200, HELLO), COMPLETIONS: (200, PLAIN)}
            peer.headers, peer.requests, peer.num_hung_up = {}, [], 0
        for upstream in self.server.running.deps.upstreams.servers.values():
            upstream.breaker = Breaker()

    def key(self, *, allow_remote: bool = False, models: tuple[str, ...] | None = None, **limits: int) -> str:
        from atlas.types import Limits

        keys = self.server.running.deps.store.keys
        return keys.mint("standing", allow_remote=allow_remote, models=models, limits=Limits(**limits)).key


def fallback_settings(near: Peer, next_one: Peer, far: Peer, **chains: tuple[str, ...]) -> FallbackSettings:
    """127.1 is the loopback interface in an old spelling, which nobody takes for this machine."""
    urls = {"near": near.url, "next": next_one.url, "far": far.url.replace("127.0.0.1", "127.1"), "gone": "http://127.0.0.1:9/v1"}
    return FallbackSettings(
        upstreams={
            name: UpstreamSettings(url=url, key_env="STANDIN_KEY" if name == "near" else "") for name, url in urls.items()
        },
        chains=chains,
        deadline_s=8.0,
    )


def open_all(stack: ExitStack, loop: asyncio.AbstractEventLoop) -> tuple[Peer, Peer, Peer]:
    near, next_one, far = (stack.enter_context(peer_on(loop)) for _ in range(3))
    return near, next_one, far


def asked(peer: Peer) -> list[dict[str, Any]]:
    return [body for _, _, body in peer.requests]


@pytest.fixture(scope="module")
def whole(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with ExitStack() as stack:
        near, next_one, far = open_all(stack, stack.enter_context(peer_loop()))
        fallback = fallback_settings(near, next_one, far, **CHAINS)
        server = stack.enter_context(
            _serving(
                ScriptedEngine(["at home"], model=MODEL),
                redis,
                tmp_path_factory.mktemp("standing") / uuid.uuid4().hex,
                limits=LimitSettings(prices=PRICES),
                settings=Settings(fallback=fallback),
                upstreams=Upstreams(fallback, {"STANDIN_KEY": "sk-near"}),
            )
        )
        yield Standing(server, near, next_one, far)
