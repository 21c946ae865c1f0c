"""The contract suite, run against each engine there is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import uvicorn

from atlas.engine import Engine, RemoteEngine, ScriptedEngine, load_engine
from atlas.gateway import create_app
from atlas.settings import EngineSettings
from tests import ggufs
from tests.engine import contract_allowance, contract_grammar, contract_logprobs  # noqa: F401  enter their checks
from tests.engine.contract import CHECKS, TOOL_SEED, Check, Needs
from tests.gateway.conftest import KEY, MODEL, deps_of

CALL = 'At once. <tool_call>\n{"name": "check", "arguments": {"flag": true}}\n</tool_call>'
STORY = "".join(f" word{i}" for i in range(5000)).strip()


@asynccontextmanager
async def closing(engine: Engine) -> AsyncIterator[Engine]:
    try:
        yield engine
    finally:
        await engine.close()


def scripted() -> AbstractAsyncContextManager[Engine]:
    return closing(ScriptedEngine([STORY] * TOOL_SEED + [CALL], model=MODEL, delay_s=0.001))


@asynccontextmanager
async def in_process() -> AsyncIterator[Engine]:
    settings = EngineSettings(context_tokens=4096, threads=1, max_sequences=16, embedder="model")
    async with closing(await load_engine(ggufs.tiny_random(), model_id=MODEL, settings=settings)) as engine:
        yield engine


@asynccontextmanager
async def remote() -> AsyncIterator[Engine]:
    """Our own gateway in front of the in-process engine, over a socket."""
    async with in_process() as engine, serving(engine) as url, closing(RemoteEngine(url, model=MODEL, api_key=KEY)) as client:
        yield client


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(deps_of(engine)), log_config=None, timeout_graceful_shutdown=3))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        await running


ENGINES: list[Callable[[], AbstractAsyncContextManager[Engine]]] = [scripted, in_process, remote]


@pytest.mark.parametrize("start", ENGINES, ids=lambda start: start.__name__)
@pytest.mark.parametrize(("check", "needs"), CHECKS, ids=lambda value: getattr(value, "__name__", ""))
async def test_every_engine_keeps_the_contract(
    check: Check, needs: Needs, start: Callable[[], AbstractAsyncContextManager[Engine]]
) -> None:
    async with start() as engine:
        if not needs(engine.capabilities):
            pytest.skip(f"{start.__name__} does not declare it")
        await check(engine)
