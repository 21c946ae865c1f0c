"""`verify` and `solve` as an agent meets them: the protocol's own client, over stdin and over HTTP, to a real sandbox."""

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

from tests.cli.conftest import RunningServer
from tests.gateway.conftest import KEY, Running, wait_for
from tests.gateway.metered import redis
from tests.gateway.tasking import Tasking, tasking
from tests.store.live.conftest import Server

__all__ = ["redis"]  # a fixture

Connect = Callable[[], AbstractAsyncContextManager[ClientSession]]

RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
TESTS = "from solution import add\n\ndef test_small():\n    assert add(1, 2) == 3\n"
CASES = [{"args": [1, 2], "expected": 3}]
TASK = {"task": "Write add(a, b).", "tests": "assert add(1, 2) == 3", "k": 1}
ANSWER = f"```python\n{RIGHT}```\n"
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@pytest.fixture(scope="module")
def solving(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tasking]:
    with tasking(redis, tmp_path_factory.mktemp("mcp") / "data", (ANSWER,)) as server:
        yield server


@pytest.fixture(scope="module")
def server(solving: Tasking) -> Running:
    return solving.running


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
        tool, solve = (await session.list_tools()).tools
    assert (tool.name, solve.name) == ("verify", "solve")
    assert solve.input_schema["required"] == ["task"]
    assert {"tests", "cases", "k", "deadline_s"} <= set(solve.input_schema["properties"])
    assert "$ref" not in f"{solve.input_schema} {solve.output_schema}"
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


async def test_a_task_is_solved_over_http_and_its_result_kept(solving: Tasking) -> None:
    async with over_http(solving.running.url) as session:
        result = await session.call_tool("solve", TASK)
        wrong = await session.call_tool("solve", {"task": "x", "tests": "y = 1"})
    assert not result.is_error
    assert result.structured_content is not None
    assert (result.structured_content["success"], result.structured_content["code"]) == (True, RIGHT)
    assert text_of(result).startswith("verified: 1 of 1 given tests")
    assert RIGHT.strip() in text_of(result)
    assert solving.task(result.structured_content["task_id"])["result"]["success"]
    assert wrong.is_error
    assert "the tests hold no test" in text_of(wrong)


async def test_a_client_that_goes_away_cancels_what_is_solved_for_it(redis: Server, tmp_path: Path) -> None:
    with tasking(redis, tmp_path / "data", has_worker=False) as idle:
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "solve", "arguments": TASK}}
        with idle.http() as http, pytest.raises(httpx.ReadTimeout):
            http.post("/mcp", json=call, timeout=1)

        def outcomes() -> list[str]:
            with idle.http() as http:
                return [task["outcome"] for task in http.get("/v1/tasks").json()["data"]]

        wait_for(lambda: outcomes() == ["cancelled"], 20)


async def test_a_task_is_solved_over_stdin_by_the_running_server(tmp_path: Path) -> None:
    served = RunningServer(tmp_path / "data", "tasks.workers=1", SCRIPTED_REPLY=ANSWER)
    try:
        await asyncio.to_thread(served.wait_ready)
        async with over_stdio(served.data_dir) as session:
            result = await session.call_tool("solve", TASK)
    finally:
        served.stop()
    assert not result.is_error, text_of(result)
    assert result.structured_content is not None
    assert (result.structured_content["success"], result.structured_content["code"]) == (True, RIGHT)


async def test_without_a_running_server_to_solve_says_how_to_start_one(tmp_path: Path) -> None:
    async with over_stdio(tmp_path) as session:
        result = await session.call_tool("solve", TASK)
    assert result.is_error
    assert "atlas serve" in text_of(result)


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
