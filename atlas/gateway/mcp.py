"""POST /mcp: the Model Context Protocol over HTTP, without sessions and streams: each request is answered in its own reply.

A tool's run is a request like any other: it counts against the limits of its key and user, and ends if the client goes away.
"""

from __future__ import annotations

from litestar import Response, post
from litestar.openapi import ResponseSpec
from litestar.params import JSONBody

from atlas.errors import BadRequest, EngineUnavailable, Forbidden
from atlas.gateway.atlas import why_none
from atlas.gateway.auth import is_same_origin
from atlas.gateway.errors import ClientClosed
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.openapi import replies
from atlas.gateway.sandbox import STATUSES, run
from atlas.gateway.sse import on_disconnect
from atlas.gateway.tasks_desk import checked_request, followed, journal_of, run_of, submit, task_priority
from atlas.mcp import VERSIONS, McpMessage, McpReply, McpServer
from atlas.ralph import Solved, TaskRequest, TaskResult, solve_tool, solved
from atlas.sandbox import verify_tool
from atlas.store import TaskClosed
from atlas.types import Execution, Program, RunLimits

NO_REPLY = ResponseSpec(None, generate_examples=False, description="A notification; it gets no reply")


@post(
    "/mcp",
    status_code=200,
    opt={"access": "tasks"},
    tags=["sandbox"],
    summary="Call the tools `verify` and `solve` over the Model Context Protocol",
    responses=replies(McpReply, STATUSES) | {202: NO_REPLY},
)
async def mcp(request: HTTPRequest, data: JSONBody[McpMessage]) -> Response[McpReply | bytes]:
    exchange = exchange_of(request)
    _check_origin(request, exchange)
    _check_version(exchange)

    async def run_metered(program: Program, limits: RunLimits) -> Execution:
        return await run(request, program, limits)

    async def solve_for_caller(asked: TaskRequest) -> Solved:
        return await solve(request, asked)

    tools = [verify_tool(run_metered, exchange.deps.settings.sandbox)]
    server = McpServer([*tools, *([solve_tool(solve_for_caller)] if exchange.deps.journal is not None else [])])
    reply = await server.respond(data)
    return Response(b"", status_code=202) if reply is None else Response(reply, status_code=200)


async def solve(request: HTTPRequest, asked: TaskRequest) -> Solved:
    """Have a task solved for the caller, and wait for it. It is cancelled if the client goes away.

    Raises:
        AtlasError: it was refused, or was closed without a result.
    """
    exchange = exchange_of(request)
    wanted = await checked_request(exchange, asked)
    task, _ = await submit(exchange, wanted, priority=task_priority(exchange, None))
    journal = journal_of(exchange)
    with on_disconnect(request.receive, exchange.abandon):
        async for event in followed(exchange, task.id):
            if isinstance(event, TaskClosed):
                run = await run_of(journal, event.task)
                if run is None:
                    raise why_none(event.task, run)
                return solved(task.id, TaskResult.of(run))
    if exchange.outcome == ClientClosed.code:
        await journal.cancel(task.id, reason="the client went away")
        raise ClientClosed("the client went away")
    raise EngineUnavailable(f"the server is shutting down; the task goes on, see /v1/tasks/{task.id}", retry_after_s=5)


def _check_origin(request: HTTPRequest, exchange: Exchange) -> None:
    """The protocol has servers refuse other sites' pages whatever else they bring along."""
    headers = dict(request.headers)
    allowed = exchange.deps.server.cors_origins
    origin = headers.get("origin")
    if origin is not None and not {origin, "*"} & set(allowed) and not is_same_origin(headers):
        raise Forbidden(f"origin {origin[:100]!r} is not one of this server's pages; add it to server.cors_origins")


def _check_version(exchange: Exchange) -> None:
    version = exchange.headers.get("mcp-protocol-version", "")
    if version and version not in VERSIONS:
        known = ", ".join(VERSIONS)
        raise BadRequest(f"mcp-protocol-version: {version[:40]!r} is not one of {known}", param="mcp-protocol-version")
