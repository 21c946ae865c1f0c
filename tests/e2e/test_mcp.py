"""`verify` as an agent meets it: the protocol's own client, over stdin and stdout and over HTTP, to a real sandbox."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import ClientSession, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, TextContent

from atlas.engine import ScriptedEngine
from tests.gateway.conftest import KEY, MODEL, Running, deps_of, serving
from tests.gateway.sandboxes import new_sandbox, started

Connect = Callable[[], AbstractAsyncContextManager[ClientSession]]

RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
TESTS = "from solution import add\n\ndef test_small():\n    assert add(1, 2) == 3\n"
CASES = [{"args": [1, 2], "expected": 3}]
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    deps = deps_of(ScriptedEngine(["Hello world!"], model=MODEL), sandbox=new_sandbox())
    with serving(deps) as running, started(running):
        yield running


@pytest.fixture(params=["stdio", "http"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Connect:
    if request.param == "stdio":
        return lambda: over_stdio(tmp_path)
    running: Running = request.getfixturevalue("server")
    return lambda: over_http(running.url)


@asynccontextmanager
async def over_stdio(home: Path) -> AsyncIterator[ClientSession]:
    arguments = ["-m", "atlas", "mcp", "--data-dir", str(home)]
    parameters = StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))
    async with stdio_client(parameters) as (reading, writing), ClientSession(reading, writing) as session:
        await session.initialize()
        yield session


@asynccontextmanager
async def over_http(url: str, *, key: str = KEY) -> AsyncIterator[ClientSession]:
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=60) as http,
        streamable_http_client(f"{url}/mcp", http_client=http) as (reading, writing),
        ClientSession(reading, writing) as session,
    ):
        await session.initialize()
        yield session


def text_of(result: CallToolResult) -> str:
    [content] = result.content
    assert isinstance(content, TextContent)
    return content.text


async def test_an_agent_finds_the_tool_and_what_it_takes(connect: Connect) -> None:
    async with connect() as session:
        [tool] = (await session.list_tools()).tools
    assert tool.name == "verify"
    assert tool.input_schema["required"] == ["code"]
    assert {"code", "tests", "test_code", "cases", "entry_point", "timeout"} <= set(tool.input_schema["properties"])
    assert "$ref" not in f"{tool.input_schema} {tool.output_schema}"


async def test_right_code_is_verified_and_wrong_code_is_not(connect: Connect) -> None:
    """The client itself holds what comes back against the tool's schema."""
    async with connect() as session:
        right = await session.call_tool("verify", {"code": RIGHT, "tests": TESTS})
        wrong = await session.call_tool("verify", {"code": WRONG, "mode": "function", "entry_point": "add", "cases": CASES})
    assert not right.is_error
    assert right.structured_content is not None
    assert (right.structured_content["success"], right.structured_content["tests_run"]) == (True, 1)
    assert text_of(right).startswith("verified: 1 of 1 tests passed")
    assert not wrong.is_error
    assert wrong.structured_content is not None
    assert wrong.structured_content["success"] is False
    [case] = wrong.structured_content["cases"]
    assert (case["name"], case["outcome"], case["expected"], case["returned"]) == ("add(1, 2)", "failed", "3", "-1")
    assert text_of(wrong).splitlines()[1] == "  add(1, 2): expected 3, returned -1"


async def test_code_without_tests_is_run_but_proves_nothing(connect: Connect) -> None:
    async with connect() as session:
        result = await session.call_tool("verify", {"code": "print('hello')"})
    assert result.structured_content is not None
    assert result.structured_content["success"] is False
    assert text_of(result).startswith("not verified: completed")
    assert text_of(result).endswith("stdout:\nhello\n")


async def test_input_that_makes_no_sense_is_an_error_that_names_the_field(connect: Connect) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"code": 3}, "code: Expected `str`"),
        ({}, "`code`"),
        ({"code": RIGHT, "tets": TESTS}, "`tets`"),
        ({"code": RIGHT, "tests": TESTS, "test_code": TESTS}, "tests: the same as test_code"),
        ({"code": RIGHT, "timeout": 1e9}, "timeout: "),
        ({"code": RIGHT, "mode": "function", "entry_point": "add", "cases": [{"args": "x", "expected": 3}]}, "cases[0]: "),
    ]
    async with connect() as session:
        for arguments, words in wrong:
            result = await session.call_tool("verify", arguments)
            assert result.is_error, arguments
            assert words in text_of(result)


async def test_calls_of_one_agent_run_side_by_side(connect: Connect) -> None:
    async with connect() as session:
        calls = [session.call_tool("verify", {"code": RIGHT, "tests": TESTS}) for _ in range(4)]
        results = await asyncio.gather(*calls)
    assert [(each.structured_content or {}).get("success") for each in results] == [True] * 4


def test_nobody_in_particular_is_refused(server: Running) -> None:
    assert httpx.post(f"{server.url}/mcp", json=PING).status_code == 401
    assert httpx.post(f"{server.url}/mcp", json=PING, headers={"authorization": "Bearer wrong"}).status_code == 401


def test_http_says_what_it_does_not_take(server: Running) -> None:
    with server.http() as http:
        assert http.post("/mcp", json=PING).json() == {"jsonrpc": "2.0", "id": 1, "result": {}}
        notified = http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        assert (notified.status_code, notified.content) == (202, b"")
        assert http.get("/mcp").status_code == 405
        assert http.delete("/mcp").status_code == 405
        assert http.post("/mcp", json=[PING]).status_code == 400
        strange = http.post("/mcp", json=PING, headers={"mcp-protocol-version": "1999-01-01"})
        assert (strange.status_code, strange.json()["error"]["param"]) == (400, "mcp-protocol-version")


def test_pages_of_other_sites_are_refused_even_with_a_key(server: Running) -> None:
    with server.http() as http:
        assert http.post("/mcp", json=PING, headers={"origin": "https://evil.example"}).status_code == 403
        assert http.post("/mcp", json=PING, headers={"origin": "null"}).status_code == 403
        assert http.post("/mcp", json=PING, headers={"origin": server.url}).status_code == 200
