"""The sandbox as commands reach it: the running server's pool if there is one, else a pool of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from atlas.cli.options import find_directory
from atlas.errors import SandboxUnavailable
from atlas.sandbox import Sandbox
from atlas.settings import LogSettings, Settings

T = TypeVar("T")
SOCKET = "sandbox.sock"  # in the data directory


@asynccontextmanager
async def open_sandbox(settings: Settings) -> AsyncIterator[Sandbox]:
    """A sandbox to ask; one that was started for this is ended."""
    sandbox = await _find(settings)
    try:
        yield sandbox
    finally:
        await sandbox.close()


async def _find(settings: Settings) -> Sandbox:
    with suppress(SandboxUnavailable):
        return await Sandbox.connect(find_directory(settings).path / SOCKET)
    sandbox = Sandbox(settings.sandbox, log_settings=LogSettings(level="error"))
    await sandbox.start()
    return sandbox


def in_sandbox(settings: Settings, work: Callable[[Sandbox], Awaitable[T]]) -> T:
    """Do something with a sandbox, from code that is not asynchronous."""

    async def run() -> T:
        async with open_sandbox(settings) as sandbox:
            return await work(sandbox)

    return asyncio.run(run())
