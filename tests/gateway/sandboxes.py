"""Sandboxes that live in a server's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from atlas.sandbox import Sandbox
from atlas.settings import LogSettings, SandboxSettings
from atlas.types import SandboxStatus
from tests.gateway.conftest import Running

TWO_SLOTS = SandboxSettings(slots=2)


def new_sandbox(settings: SandboxSettings = TWO_SLOTS) -> Sandbox:
    return Sandbox(settings, log_settings=LogSettings(level="error"))


@contextmanager
def started(running: Running) -> Iterator[Running]:
    """The server's sandbox, started and in the end closed where the server lives."""
    sandbox = running.deps.sandbox
    assert sandbox is not None
    asyncio.run_coroutine_threadsafe(sandbox.start(), running.loop).result(20)
    yield running
    asyncio.run_coroutine_threadsafe(sandbox.close(), running.loop).result(20)


def status(running: Running) -> SandboxStatus:
    assert running.deps.sandbox is not None
    return asyncio.run_coroutine_threadsafe(running.deps.sandbox.status(), running.loop).result(20)
