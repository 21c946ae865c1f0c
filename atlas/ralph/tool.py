"""`solve` as a tool for models: the same task and result as over HTTP, and the verdict as text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from atlas.mcp import Tool, schema_of
from atlas.ralph.requests import TaskRequest, TaskResult, read_task

DESCRIPTION = (
    "Have code written for a task, and run in an isolated sandbox until it passes its tests; answers with the code and with what"
    " was proved about it. Give `tests` (assert statements, a pytest module that imports `solution`, or check(candidate)), or"
    " `cases` with `entry_point`, or write examples into the task; without any, tests are written too, and nothing is verified."
    " Success means that given tests ran and all of them passed, twice. It may take minutes: `deadline_s` bounds it."
)


class Solved(TaskResult, frozen=True, kw_only=True):
    """The result of a task, and by which name it is kept."""

    task_id: str


Solve = Callable[[TaskRequest], Awaitable[Solved]]


def solve_tool(solve: Solve) -> Tool:
    """The tool, which has tasks solved by `solve`. It raises an AtlasError where there is no result."""

    async def call(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        solved = await solve(read_task(arguments))
        structured: dict[str, Any] = msgspec.to_builtins(solved)
        return "\n".join(_lines(solved)), structured

    return Tool("solve", DESCRIPTION, schema_of(TaskRequest), schema_of(Solved), call)


def solved(task_id: str, result: TaskResult) -> Solved:
    return Solved(task_id=task_id, **msgspec.structs.asdict(result))


def _lines(result: Solved) -> Iterator[str]:
    yield result.line()
    if result.failure is not None:
        yield f"ended by a failure of the server's: {result.failure.code}: {result.failure.message}"
    yield f"```python\n{result.code.rstrip()}\n```" if result.code else "There is no code."
