"""A sandbox of the tests' own."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest

from atlas.sandbox import Sandbox
from atlas.settings import SandboxSettings


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(SandboxSettings(slots=2))
    await sandbox.start()
    yield sandbox
    await sandbox.close()


def has_tool(name: str) -> bool:
    return shutil.which(name, path="/usr/local/bin:/usr/bin:/bin") is not None
