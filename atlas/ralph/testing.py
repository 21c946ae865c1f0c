"""Runs one candidate on the suite. What it does wrong is in the result; what goes wrong with us is raised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from atlas.ralph.desk import Desk
from atlas.ralph.feedback import failure_of
from atlas.ralph.projects import execution_of, wall_s
from atlas.ralph.projects import failure_of as project_failure
from atlas.ralph.visible import Suite
from atlas.types import Execution, Failure, Program, ProjectCheck


class Tested(NamedTuple):
    """What all checks together showed, and what of it the model may be told."""

    execution: Execution
    failure: Failure | None
    is_right: bool


async def run_suite(desk: Desk, suite: Suite, code: str, *, fresh: bool = False) -> Tested:
    """Run the checks in order, up to the first that is not passed.

    Args:
        desk: of the run.
        suite: what is to be passed.
        code: the candidate's.
        fresh: in a fresh interpreter with another hash seed.

    Raises:
        AtlasError: of ours, after several tries.
    """
    if desk.request.project is not None:
        return await _run_project(desk, desk.request.project, code)
    executions: list[Execution] = []
    for check in suite.checks:
        executions.append(await _run(desk, replace(check, code=code, fresh=fresh)))
        if not is_right(executions[-1]):
            break
    is_whole = len(executions) == len(suite.checks) and is_right(executions[-1])
    return Tested(_combined(executions), failure_of(executions, suite), is_whole)


def is_right(execution: Execution) -> bool:
    """Tests ran and passed; or there were none, and the program ran to its end."""
    return execution.passed or execution.outcome == "completed"


async def _run_project(desk: Desk, project: ProjectCheck, edit: str) -> Tested:
    verdict = await desk.ours("sandbox", lambda: desk.tools.check(replace(project, edit=edit)))
    desk.sandbox_s += wall_s(verdict)
    desk.verdicts[edit] = verdict
    return Tested(execution_of(verdict), project_failure(verdict), verdict.passed)


async def _run(desk: Desk, program: Program) -> Execution:
    execution = await desk.ours("sandbox", lambda: desk.tools.run(program, desk.request.limits))
    desk.sandbox_s += execution.wall_s
    return execution


def _combined(executions: Sequence[Execution]) -> Execution:
    """The last one, which says how it ended, with the tests of all."""
    if len(executions) == 1:
        return executions[0]
    return replace(
        executions[-1],
        cases=tuple(case for execution in executions for case in execution.cases),
        tests_run=sum(execution.tests_run for execution in executions),
        tests_passed=sum(execution.tests_passed for execution in executions),
        sealed=all(execution.sealed for execution in executions),
        wall_s=sum(execution.wall_s for execution in executions),
        cpu_s=sum(execution.cpu_s for execution in executions),
        peak_bytes=max(execution.peak_bytes for execution in executions),
    )
