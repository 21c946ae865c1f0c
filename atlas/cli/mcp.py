"""`atlas mcp`: the tools `verify` and `solve` for agents that start them as a program; one JSON message a line, in and out."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import click
import msgspec
import structlog

from atlas.cli.client import find_access
from atlas.cli.options import read_settings, settings_options
from atlas.cli.sandboxes import open_sandbox
from atlas.cli.tasks import Tasks
from atlas.errors import OperatorError, Unavailable
from atlas.log import configure_logging
from atlas.mcp import McpServer
from atlas.ralph import Solved, TaskRequest, solve_tool, solved
from atlas.sandbox import Sandbox, verify_tool
from atlas.settings import Settings
from atlas.types import Execution, Program, RunLimits

log = structlog.get_logger("atlas.mcp")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@click.command()
@settings_options
def mcp(config: Path | None, data_dir: str | None) -> None:
    """Offer `verify` and `solve` to a coding agent over stdin and stdout (Model Context Protocol).

    \b
    Example:
      claude mcp add atlas -- atlas mcp

    Runs code in the running server's sandbox if there is one, else in its own; `solve` needs one. Ends when stdin does.
    """
    settings = read_settings(config, data_dir)
    configure_logging("warning", form=settings.log.format)  # to stderr: stdout is the protocol's
    asyncio.run(serve(settings))


async def serve(settings: Settings) -> None:
    """Answer until stdin ends and everything asked for is answered."""
    reader = await _stdin()
    async with StandingSandbox(settings) as sandbox, asyncio.TaskGroup() as answers:
        server = McpServer([verify_tool(sandbox.run, settings.sandbox), solve_tool(partial(solve, settings))])
        while line := await _read_line(reader):
            if line.strip():
                answers.create_task(_answer(server, line))


async def solve(settings: Settings, asked: TaskRequest) -> Solved:
    """Have a task solved by the running server. Cancelled, it cancels the task.

    Raises:
        Unavailable: there is no server, it refuses, or the task was closed without a result.
    """
    try:
        server, key = await asyncio.to_thread(find_access, settings)
        async with Tasks(server, key) as tasks:
            closed = await tasks.solve(msgspec.to_builtins(asked), lambda _: None)
    except OperatorError as error:
        raise Unavailable(error.message) from None
    if closed.result is None:
        raise Unavailable(f"task {closed.id} was closed as {closed.outcome}, without a result: {closed.reason}")
    return solved(closed.id, closed.result)


class StandingSandbox:
    """A sandbox for as long as an agent works: opened when it is needed, and again if its owner has ended it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._sandbox: Sandbox | None = None

    async def __aenter__(self) -> StandingSandbox:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def run(self, program: Program, limits: RunLimits) -> Execution:
        """As `Sandbox.run`."""
        async with self._opening:
            if self._sandbox is None or not self._sandbox.is_up:
                await self._opened.aclose()
                self._sandbox = await self._opened.enter_async_context(open_sandbox(self._settings))
        return await self._sandbox.run(program, limits)


async def _answer(server: McpServer, line: bytes) -> None:
    reply = await server.answer(line)
    if reply is not None:
        with suppress(BrokenPipeError):  # nobody reads replies any more; stdin will end too
            sys.stdout.buffer.write(reply + b"\n")
            sys.stdout.buffer.flush()


async def _stdin() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=MAX_MESSAGE_BYTES)
    try:
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    except ValueError:
        raise OperatorError("stdin is a file; an agent starts this command and speaks to it through a pipe") from None
    return reader


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """The next message; empty where there is none any more."""
    try:
        return await reader.readline()
    except ValueError:
        log.error("mcp.message_too_long", limit_bytes=MAX_MESSAGE_BYTES)  # where the next begins cannot be known
        return b""
