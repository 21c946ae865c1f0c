"""The protocol as such, with tools that need no sandbox."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from atlas.errors import BadRequest, SandboxRefused
from atlas.mcp import VERSIONS, McpServer, Tool

OBJECT = {"type": "object"}


async def double(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if not isinstance(arguments.get("n"), int):
        raise BadRequest("n: must be an integer", param="n")
    return str(2 * arguments["n"]), {"n": 2 * arguments["n"]}


async def refuse(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    raise SandboxRefused("nothing to isolate with")


async def crash(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    raise ZeroDivisionError("a secret")


async def wait(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def new_server() -> McpServer:
    return McpServer(
        Tool(call.__name__, f"Does {call.__name__}.", OBJECT, OBJECT, call) for call in (double, refuse, crash, wait)
    )


async def said(message: object, server: McpServer | None = None) -> Any:
    """The reply to one message, decoded."""
    raw = message if isinstance(message, bytes) else json.dumps(message).encode()
    reply = await (server or new_server()).answer(raw)
    return None if reply is None else json.loads(reply)


async def asked(method: str, **params: Any) -> Any:
    reply = await said({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})
    assert (reply["jsonrpc"], reply["id"]) == ("2.0", 7)
    return reply.get("result") or reply["error"]


def call(name: object, arguments: object, request_id: int | str = 1) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_known_version_is_the_one_that_is_spoken(version: str) -> None:
    result = await asked("initialize", protocolVersion=version, capabilities={}, clientInfo={"name": "x", "version": "1"})
    assert result["protocolVersion"] == version
    assert result["capabilities"] == {"tools": {}}
    assert result["serverInfo"]["name"] == "atlas"


async def test_an_unknown_version_is_answered_with_the_newest() -> None:
    assert (await asked("initialize", protocolVersion="2099-01-01"))["protocolVersion"] == "2025-11-25"


async def test_a_version_that_is_no_text_is_refused() -> None:
    assert await asked("initialize", protocolVersion=3) == {"code": -32602, "message": "protocolVersion: must be a string"}


async def test_a_ping_is_answered_with_nothing_in_it() -> None:
    assert await said({"jsonrpc": "2.0", "id": "a", "method": "ping"}) == {"jsonrpc": "2.0", "id": "a", "result": {}}


async def test_an_id_comes_back_as_it_was_sent() -> None:
    for sent in (0, 1, "1", ""):
        reply = await said({"jsonrpc": "2.0", "id": sent, "method": "ping"})
        assert reply["id"] == sent
        assert type(reply["id"]) is type(sent)


async def test_tools_are_listed_with_their_schemas() -> None:
    tools = (await asked("tools/list"))["tools"]
    assert [tool["name"] for tool in tools] == ["double", "refuse", "crash", "wait"]
    assert tools[0] == {"name": "double", "description": "Does double.", "inputSchema": OBJECT, "outputSchema": OBJECT}


async def test_a_call_is_answered_as_text_and_as_an_object() -> None:
    reply = await said(call("double", {"n": 4}))
    assert reply["result"] == {"content": [{"type": "text", "text": "8"}], "structuredContent": {"n": 8}, "isError": False}


async def test_the_callers_mistake_is_a_result_that_names_the_field() -> None:
    reply = await said(call("double", {"n": "four"}))
    assert reply["result"] == {"content": [{"type": "text", "text": "n: must be an integer"}], "isError": True}


async def test_our_failure_is_a_result_with_its_code() -> None:
    reply = await said(call("refuse", {}))
    assert reply["result"]["isError"]
    assert reply["result"]["content"][0]["text"] == "sandbox_refused: nothing to isolate with"


async def test_a_crash_is_an_internal_error_that_tells_nothing() -> None:
    reply = await said(call("crash", {}))
    assert reply["error"]["code"] == -32603
    assert "secret" not in json.dumps(reply)


@pytest.mark.parametrize(
    ("message", "code", "word"),
    [
        (b"{", -32700, "JSON"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "\xff"}', -32700, "JSON"),
        (b"[{" * 100_000, -32600, "request"),
        ([], -32600, "request"),
        ({"jsonrpc": "1.0", "id": 1, "method": "ping"}, -32600, "jsonrpc"),
        ({"jsonrpc": "2.0", "id": None, "method": "ping"}, -32600, "id"),
        ({"jsonrpc": "2.0", "id": 1}, -32600, "method"),
        ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]}, -32600, "params"),
        ({"jsonrpc": "2.0", "id": 1, "method": "resources/list"}, -32601, "resources/list"),
        (call("no_such", {}), -32602, "no_such"),
        (call(5, {}), -32602, "name"),
        (call("double", [1]), -32602, "arguments"),
    ],
)
async def test_a_message_that_makes_no_sense_is_an_error_that_says_why(message: object, code: int, word: str) -> None:
    error = (await said(message))["error"]
    assert error["code"] == code
    assert word in error["message"]


@pytest.mark.parametrize("method", ["notifications/initialized", "notifications/cancelled", "notifications/of_the_future"])
async def test_notifications_get_no_reply(method: str) -> None:
    assert await said({"jsonrpc": "2.0", "method": method}) is None


async def test_a_cancelled_call_ends_without_a_reply_and_others_go_on() -> None:
    server = new_server()
    waiting = asyncio.create_task(said(call("wait", {}, "slow"), server))
    await asyncio.sleep(0)
    assert (await said(call("double", {"n": 1}, 2), server))["result"]["structuredContent"] == {"n": 2}
    assert not waiting.done()
    again = await said(call("double", {"n": 1}, "slow"), server)
    assert again["error"]["code"] == -32600
    await said({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "slow"}}, server)
    assert await asyncio.wait_for(waiting, 30) is None
