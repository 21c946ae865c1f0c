"""Real boxes of the native tier, and a short way to have a program judged in them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from atlas.sandbox.grade import execute
from atlas.sandbox.native import NativeBoxes
from atlas.types import Execution, Program, RunLimits

UID = 64321
DEFAULT = RunLimits()

Grade = Callable[..., Awaitable[Execution]]


@pytest_asyncio.fixture(loop_scope="package", scope="package")
async def boxes() -> AsyncIterator[NativeBoxes]:
    boxes = NativeBoxes(python=sys.executable, uid=UID, slots=2)
    await boxes.start()
    yield boxes
    await boxes.close()


@pytest.fixture
def grade(boxes: NativeBoxes) -> Grade:
    """Judge a program: `await grade(code, mode=..., limits=...)`."""

    async def grade(code: str, *, limits: RunLimits = DEFAULT, **fields: Any) -> Execution:
        return await execute(Program(code=code, **fields), limits, boxes)

    return grade
