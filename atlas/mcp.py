"""The server's side of the Model Context Protocol: JSON-RPC messages in, replies out, over whatever carries them.

Tools only. A tool that refuses what it is asked, or cannot work just now, answers with a result that says so (`isError`), which
the model reads; protocol errors are for the program that speaks to us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import structlog
from msgspec import UNSET, Meta, UnsetType

from atlas import __version__
from atlas.errors import AtlasError, BadRequest

log = structlog.get_logger("atlas.mcp")

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")  # newest first
PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603

Id = str | int
# A tool's work: a text for models and people, and the same as a JSON object that fits the tool's output schema.
Call = Callable[[dict[str, Any]], Awaitable[tuple[str, dict[str, Any]]]]


class Tool(NamedTuple):
    """What a model may call. `call` raises an AtlasError where it refuses or fails."""

    name: str
    description: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    call: Call


class McpMessage(msgspec.Struct, frozen=True):
    """A JSON-RPC request, or without an `id` a notification."""

    jsonrpc: Literal["2.0"]
    method: str
    id: Annotated[Id, Meta(description="Repeated in the reply")] | UnsetType = UNSET
    params: dict[str, Any] | UnsetType = UNSET


class McpError(msgspec.Struct, frozen=True):
    code: int
    message: str


class McpReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request: `result` or `error`."""

    jsonrpc: Literal["2.0"] = "2.0"
    id: Id | None
    result: dict[str, Any] | UnsetType = UNSET
    error: McpError | UnsetType = UNSET


class ProtocolError(Exception):
    """What the program that speaks to us did wrong."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.error = McpError(code, message)


class McpServer:
    """One client's connection, whose requests may be answered at the same time."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._running: dict[Id, asyncio.Task[tuple[str, dict[str, Any]]]] = {}  # tools at work, by request

    async def answer(self, message: bytes) -> bytes | None:
        """The reply to one message as it came, if it gets one. Does not raise: whatever goes wrong is an error in the reply."""
        reply = await self._answered(message)
        return None if reply is None else msgspec.json.encode(reply)

    async def _answered(self, message: bytes) -> McpReply | None:
        try:
            parsed = read_message(message)
        except ProtocolError as wrong:
            return McpReply(id=None, error=wrong.error)
        try:
            return await self.respond(parsed)
        except Exception:
            log.exception("mcp.crashed", method=parsed.method[:100])
            error = McpError(INTERNAL_ERROR, "the server failed while answering; its log has the reason")
            return None if parsed.id is UNSET else McpReply(id=parsed.id, error=error)

    async def respond(self, message: McpMessage) -> McpReply | None:
        """The reply to a message, if it gets one. What no tool should raise goes on to the caller."""
        if message.id is UNSET:
            self._note(message)
            return None
        try:
            result = await self._result(message.id, message.method, message.params or {})
        except ProtocolError as wrong:
            return McpReply(id=message.id, error=wrong.error)
        return None if result is None else McpReply(id=message.id, result=result)

    def _note(self, message: McpMessage) -> None:
        """Of notifications only one asks for something: to end a call, which then gets no reply."""
        cancelled = (message.params or {}).get("requestId")
        if message.method == "notifications/cancelled" and isinstance(cancelled, Id) and cancelled in self._running:
            self._running[cancelled].cancel()

    async def _result(self, request_id: Id, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        match method:
            case "initialize":
                return _introduction(params)
            case "ping":
                return {}
            case "tools/list":
                return {"tools": [_listed(tool) for tool in self._tools.values()]}
            case "tools/call":
                return await self._call(request_id, params)
        raise ProtocolError(METHOD_NOT_FOUND, f"no method {method[:100]!r}; this server has tools only")

    async def _call(self, request_id: Id, params: dict[str, Any]) -> dict[str, Any] | None:
        """What the tool answers; None if the client has cancelled the call."""
        name, arguments = params.get("name"), params.get("arguments") or {}
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            raise ProtocolError(INVALID_PARAMS, f"name: no tool {str(name)[:100]!r}; there are: {', '.join(self._tools)}")
        if not isinstance(arguments, dict):
            raise ProtocolError(INVALID_PARAMS, "arguments: must be an object")
        if request_id in self._running:
            raise ProtocolError(INVALID_REQUEST, f"id: {request_id!r} is that of a request still being answered")
        self._running[request_id] = work = asyncio.ensure_future(tool.call(arguments))
        try:
            await asyncio.wait([work])
        finally:
            work.cancel()  # it is over, or this was cancelled itself
            del self._running[request_id]
        return None if work.cancelled() else _outcome(work)


def read_message(message: bytes) -> McpMessage:
    """One message as it came.

    Raises:
        ProtocolError: it is no JSON, or none of this protocol's.
    """
    try:
        return msgspec.json.decode(message, type=McpMessage)
    except msgspec.ValidationError as error:
        raise ProtocolError(INVALID_REQUEST, f"not a JSON-RPC request: {error}") from None
    except (ValueError, RecursionError) as error:  # msgspec's for JSON, Python's for UTF-8
        raise ProtocolError(PARSE_ERROR, f"not JSON: {error}") from None


def _introduction(params: dict[str, Any]) -> dict[str, Any]:
    asked = params.get("protocolVersion")
    if not isinstance(asked, str):
        raise ProtocolError(INVALID_PARAMS, "protocolVersion: must be a string")
    return {
        "protocolVersion": asked if asked in VERSIONS else VERSIONS[0],
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "atlas", "title": "ATLAS", "version": __version__},
    }


def _listed(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "inputSchema": tool.input_schema,
        "outputSchema": tool.output_schema,
    }


def _outcome(work: asyncio.Task[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    try:
        text, structured = work.result()
    except AtlasError as error:
        is_callers = isinstance(error, BadRequest)
        return {"content": [_text(error.message if is_callers else f"{error.code}: {error.message}")], "isError": True}
    return {"content": [_text(text)], "structuredContent": structured, "isError": False}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def schema_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Of a JSON object, in one piece: clients differ in what they make of references."""
    _, components = msgspec.json.schema_components([kind], ref_template="{name}")
    inlined: dict[str, Any] = _inline(components[kind.__name__], components)
    return inlined


def _inline(schema: Any, components: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inline(each, components) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(components[schema["$ref"]], components)
    return {key: _inline(value, components) for key, value in schema.items()}
