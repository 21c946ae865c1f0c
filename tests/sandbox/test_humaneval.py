"""HumanEval: right solutions pass, sealed, and of wrong ones the sandbox says what the official check says outside of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from atlas.sandbox.grade import execute
from atlas.sandbox.native import NativeBoxes
from atlas.types import Execution, Program, RunLimits, SandboxMode
from tests.sandbox.mutants import KINDS, Mutant, Task, check_outside, make_mutants, page, read_tasks

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

TASKS = {task.task_id: task for task in read_tasks()}
LIMITS = RunLimits(wall_s=5.0, cpu_s=4.0)
EVERY = 8  # of the tasks, whose mutants are in the default suite
AT_A_TIME = 2
PAGE = Path(__file__).parents[2] / "docs" / "sandbox-mutants.md"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def boxes() -> AsyncIterator[NativeBoxes]:
    boxes = NativeBoxes(python=sys.executable, uid=64321, slots=AT_A_TIME)
    await boxes.start()
    yield boxes
    await boxes.close()


async def judge(boxes: NativeBoxes, task: Task, code: str, limits: RunLimits = LIMITS) -> Execution:
    program = Program(code=code, mode="function", entry_point=task.entry_point, test_code=task.checker)
    return await execute(program, limits, boxes)


@pytest.mark.parametrize("task_id", TASKS)
async def test_a_reference_solution_passes_sealed(boxes: NativeBoxes, task_id: str) -> None:
    task = TASKS[task_id]
    done = await judge(boxes, task, task.reference)
    assert done.passed, f"{done.error_type}: {done.error_message}"
    assert done.sealed


async def test_there_are_three_mutants_for_each_task_and_each_is_another_program() -> None:
    mutants = [mutant for task in TASKS.values() for mutant in make_mutants(task)]
    assert len(mutants) == 3 * len(TASKS) == 492
    assert len({mutant.code for mutant in mutants}) == len(mutants)
    assert {mutant.kind for mutant in mutants} == set(KINDS)
    assert mutants == [mutant for task in TASKS.values() for mutant in make_mutants(task)]


async def test_of_some_mutants_the_sandbox_says_what_the_official_check_says(boxes: NativeBoxes) -> None:
    mutants = [mutant for task in list(TASKS.values())[::EVERY] for mutant in make_mutants(task)]
    assert await disagreements(boxes, mutants, await asyncio.to_thread(official, mutants)) == []


@pytest.mark.slow
async def test_of_every_mutant_the_sandbox_says_what_the_official_check_says(boxes: NativeBoxes) -> None:
    mutants = [mutant for task in TASKS.values() for mutant in make_mutants(task)]
    passed = await asyncio.to_thread(official, mutants)
    assert await disagreements(boxes, mutants, passed) == []
    survivors = [mutant for mutant, is_passed in zip(mutants, passed, strict=True) if is_passed]
    assert PAGE.read_text() == page(survivors, len(mutants)), "run `python -m tests.sandbox.mutants > docs/sandbox-mutants.md`"


def official(mutants: Sequence[Mutant]) -> list[bool]:
    return check_outside([mutant.code + mutant.task.official for mutant in mutants])


async def disagreements(boxes: NativeBoxes, mutants: Sequence[Mutant], passed: Sequence[bool]) -> list[str]:
    """Mutants of which the sandbox says something else; both kinds of verdict must be among them, or this tests nothing."""
    slots = asyncio.Semaphore(AT_A_TIME)

    async def differs(mutant: Mutant, is_passed: bool) -> str:
        async with slots:
            done = await judge(boxes, mutant.task, mutant.code)
        assert done.outcome in ("passed", "failed", "error", "timeout", "memory_limit"), done
        return "" if done.passed is is_passed else f"{mutant.name}: {done.outcome} {done.error_message}, officially {is_passed}"

    assert set(passed) == {True, False}
    return [text for text in await asyncio.gather(*map(differs, mutants, passed)) if text]


TASK = TASKS["HumanEval/53"]  # add(x, y)
RIGHT = TASK.reference


@pytest.mark.parametrize(
    ("code", "outcome", "why"),
    [
        ("def add(x, y):\n    while True: pass\n", "timeout", "wall"),
        ("import time\ntime.sleep(60)\n" + RIGHT, "timeout", "wall"),
        ("import no_such_package\n" + RIGHT, "error", "ModuleNotFoundError"),
        ("import os\nos._exit(0)\n" + RIGHT, "error", "NoResult"),
        ("import sys\nsys.exit(0)\n" + RIGHT, "error", "SystemExit"),
        ("import os\ndef add(x, y): os._exit(0)\n", "error", "NoResult"),
        ("import sys\ndef add(x, y): sys.exit(0)\n", "failed", "SystemExit"),
        ("def add(x, y) return x + y\n", "error", "SyntaxError"),
        ("def add(x, y): return undefined\n", "failed", "NameError"),
        ("class Same:\n    def __eq__(self, other): return True\ndef add(x, y): return Same()\n", "failed", "Violation"),
        ("def subtract(x, y): return x - y\n", "failed", "Missing"),
    ],
)
async def test_what_once_counted_as_a_success_fails_under_its_name(boxes: NativeBoxes, code: str, outcome: str, why: str) -> None:
    done = await judge(boxes, TASK, code, RunLimits(wall_s=2.0))
    assert not done.passed
    assert (done.outcome, done.limit or done.error_type) == (outcome, why)


@pytest.mark.parametrize("mode", ["function", "pytest"])
@pytest.mark.parametrize("test_code", ["x = 1\n", "def helper(candidate): return True\n"])
async def test_where_there_is_no_test_nothing_passes(boxes: NativeBoxes, mode: SandboxMode, test_code: str) -> None:
    done = await execute(Program(code=RIGHT, mode=mode, entry_point="add", test_code=test_code), LIMITS, boxes)
    assert not done.passed
    assert (done.outcome, done.error_type, done.tests_run) == ("error", "NoTests", 0)
