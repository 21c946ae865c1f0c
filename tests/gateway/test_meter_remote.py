"""Metering in front of another server, which counts tokens for us, later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from atlas.engine import RemoteEngine
from tests.gateway.conftest import KEY, MODEL, Running, Scripted
from tests.gateway.metered import CHAT, STREAM, Metered, MeteredServer, metered, redis

__all__ = ["metered", "redis"]  # fixtures


@pytest.fixture
def upstream(scripted: Scripted) -> Running:
    return scripted(["word " * 40], delay_s=0.005)


@pytest.fixture
def server(upstream: Running, metered: MeteredServer) -> Iterator[Metered]:
    engine = RemoteEngine(upstream.url + "/v1", model=MODEL, api_key=KEY)
    server = metered(engine=engine, slice_tokens=16)
    yield server
    asyncio.run_coroutine_threadsafe(engine.close(), server.running.loop).result(20)


@pytest.mark.parametrize("body", [CHAT, STREAM, CHAT | {"n": 3}, CHAT | {"max_tokens": 10}, STREAM | {"max_tokens": 10}])
def test_what_the_other_server_counted_is_charged_and_told(server: Metered, body: dict[str, Any]) -> None:
    reply = server.chat(**body, stream_options={"include_usage": True})
    assert reply.status_code == 200
    usage = server.one_usage
    assert (usage.state, usage.is_estimated) == ("completed", False)
    assert f'"prompt_tokens":{usage.prompt_tokens},"completion_tokens":{usage.completion_tokens},' in reply.text
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens == (10 if "max_tokens" in body else 42 * body.get("n", 1))


def test_a_disconnect_is_charged_with_the_bound_on_its_prompt(server: Metered) -> None:
    with server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=CHAT, timeout=0.15)
    [usage] = server.wait_for_rows()
    assert (usage.state, usage.is_estimated) == ("aborted", True)
    assert usage.prompt_tokens >= 49  # what the other server makes of this prompt
