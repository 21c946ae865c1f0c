"""A sandbox for the tests of one module, tasks with hidden tests, and benches on a scripted model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest_asyncio

from atlas.bench import Bench, BenchSettings, Journal, Method, Record, Suite
from atlas.bench.judge import HiddenTests, Judge, RunProgram
from atlas.bench.running import Solve
from atlas.bench.values import Task
from atlas.engine import ScriptedEngine
from atlas.ralph import Policy, Tools, solve_task
from atlas.sandbox import Sandbox
from atlas.settings import SandboxSettings
from atlas.types import Case, Event, Request, VisibleTests


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(SandboxSettings(slots=2))
    await sandbox.start()
    yield sandbox
    await sandbox.close()


RIGHT = "def f(x):\n    return x + 1\n"
NARROW = "def f(x):\n    return x + 1 if x < 100 else 0\n"  # passes visible and hidden tests, and no stronger one
SEEN = "def f(x):\n    return {1: 2, 2: 3, 3: 4}[x]\n"  # passes what it was shown, and nothing else
WRONG = "def f(x):\n    return 0\n"
SECRET = 90125  # an argument that only hidden tests have


def fenced(code: str) -> str:
    return f"```python\n{code}```\n"


def call(x: int) -> Case:
    return Case(args=f"({x},)", expected=str(x + 1))


def task(number: int = 0, group: str = "") -> Task:
    """Three visible asserts, two hidden cases, one stronger one."""
    return Task(
        id=f"t{number}",
        task=f"Write f(x), which adds one. This is number {number}.",
        entry_point="f",
        visible=VisibleTests(code="assert f(1) == 2\nassert f(2) == 3\nassert f(3) == 4"),
        judge=Judge(entry_point="f", hidden=HiddenTests(cases=(call(10), call(50))), stronger=HiddenTests(cases=(call(SECRET),))),
        group=group,
    )


def suite(num_tasks: int = 3) -> Suite:
    return Suite(name="made up", sha256="0" * 64, tasks=tuple(task(number) for number in range(num_tasks)))


def settings_of(tasks: Suite, methods: Sequence[Method], seeds: Sequence[int] = (1,)) -> BenchSettings:
    return BenchSettings(
        suite=tasks.name,
        suite_sha256=tasks.sha256,
        num_tasks=len(tasks.tasks),
        model="scripted",
        methods=tuple(methods),
        seeds=tuple(seeds),
    )


class Scene:
    """A bench on a scripted model. Each candidate gets the next reply, by the seed where there is one.

    Attributes:
        told: one line for each record, as a progress line would have it.
    """

    def __init__(self, run: RunProgram, replies: Sequence[str], *, tasks: Suite | None = None) -> None:
        self.engine = ScriptedEngine(list(map(fenced, replies)), context_tokens=40_000)
        self.tasks = tasks or suite()
        self.run = run
        self.told: list[tuple[int, int]] = []

    def solve(self, request: Request, policy: Policy) -> AsyncIterator[Event]:
        return solve_task(request, Tools(generate=self.engine.submit, run=self.run, policy=policy))

    async def measure(
        self, folder: Path, methods: Sequence[Method], *, seeds: Sequence[int] = (1,), solve: Solve | None = None
    ) -> list[Record]:
        journal = Journal(folder, settings_of(self.tasks, methods, seeds))
        bench = Bench(self.tasks, methods, seeds=seeds, model="scripted", solve=solve or self.solve, run=self.run)
        try:
            return await bench.measure(journal, lambda _, done, of: self.told.append((done, of)))
        finally:
            journal.close()
