"""A sandbox for the tests of one module, and the loop on a scripted model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest_asyncio

from atlas.engine import ScriptedEngine
from atlas.ralph import Tools, solve_task
from atlas.sandbox import Sandbox
from atlas.settings import SandboxSettings
from atlas.types import Event, Execution, Program, Request, Route, Run, RunClosed, RunLimits

RunProgram = Callable[[Program, RunLimits], Awaitable[Execution]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(SandboxSettings(slots=2))
    await sandbox.start()
    yield sandbox
    await sandbox.close()


class Scene:
    """The loop with a scripted model and a real sandbox; keeps what was asked of both.

    Attributes:
        programs: everything that was run.
        events: of the last run.
    """

    def __init__(self, run: RunProgram, replies: Sequence[str], *, delay_s: float = 0.0, **tools: Any) -> None:
        self.engine = ScriptedEngine(replies, delay_s=delay_s, context_tokens=40_000)
        self.programs: list[Program] = []
        self.events: list[Event] = []
        self._run = run
        self.tools = Tools(**({"generate": self.engine.submit, "run": self.run} | tools))

    async def run(self, program: Program, limits: RunLimits) -> Execution:
        self.programs.append(program)
        return await self._run(program, limits)

    async def solve(self, request: Request) -> Run:
        self.events = [event async for event in solve_task(request, self.tools)]
        last = self.events[-1]
        assert isinstance(last, RunClosed)
        return last.run

    @property
    def asked(self) -> list[str]:
        """The text of every prompt."""
        return ["\n".join(message.content for message in prompt.messages) for prompt in self.engine.prompts]


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}```\n"


def function(body: str, name: str = "f") -> str:
    return fenced(f"def {name}(x):\n    {body}\n")


def route(k: int = 1, max_attempts: int = 3, **fields: Any) -> Route:
    return Route(k=k, max_attempts=max_attempts, **({"is_first_greedy": False} | fields))
