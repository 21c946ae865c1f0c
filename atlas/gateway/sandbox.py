"""POST /v1/sandbox/execute, and /execute as V1 had it: run code that nobody trusts, and say what that showed.

Whatever the code does is an answer with status 200; what goes wrong with us, or cannot be had here, is an error and says nothing
about the code. A run is a request like any other: it counts against the limits of its key and user, with no tokens.
"""

from __future__ import annotations

import asyncio

from litestar import post
from litestar.params import JSONBody

from atlas.errors import SandboxUnavailable
from atlas.gateway.answer import aborted
from atlas.gateway.errors import note_error
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.openapi import replies
from atlas.gateway.sse import on_disconnect
from atlas.sandbox import Evidence, RunRequest
from atlas.types import Execution, Program, RunLimits

STATUSES = (400, 401, 403, 413, 415, 429, 500, 503)


@post(
    ["/v1/sandbox/execute", "/execute"],
    status_code=200,
    opt={"access": "tasks"},
    tags=["sandbox"],
    summary="Run code in the sandbox, with tests or without",
    responses=replies(Evidence, STATUSES),
)
async def execute(request: HTTPRequest, data: JSONBody[RunRequest]) -> Evidence:
    exchange = exchange_of(request)
    return Evidence.of(await run(request, data.program(), data.limits(exchange.deps.settings.sandbox)))


async def run(request: HTTPRequest, program: Program, limits: RunLimits) -> Execution:
    """Run a program for the caller, admitted and accounted for. It ends if the client goes away, and if the request is ended.

    Raises:
        AtlasError: it was not admitted, makes no sense, or the sandbox is not there, full, or refuses.
    """
    exchange = exchange_of(request)
    with on_disconnect(request.receive, exchange.abandon):
        try:
            execution = await _admitted(exchange, program, limits)
        except Exception as error:
            note_error(exchange, error)
            await exchange.settle()
            raise
        await exchange.settle()
        return execution


async def _admitted(exchange: Exchange, program: Program, limits: RunLimits) -> Execution:
    if exchange.deps.sandbox is None:
        raise SandboxUnavailable("this server has no sandbox")
    metered = await exchange.reserve(0)
    if metered.aborted_by or exchange.is_cut or exchange.outcome != "completed":  # ended meanwhile
        raise aborted(exchange)
    metered.work = running = asyncio.ensure_future(exchange.deps.sandbox.run(program, limits))
    try:
        await asyncio.wait([running])
    finally:
        running.cancel()
    if running.cancelled():
        raise aborted(exchange)
    return running.result()
