"""What a program is, what is to be found out about it, and how: the one way from a Program to an Execution."""

from __future__ import annotations

from atlas.errors import BadRequest
from atlas.sandbox import languages
from atlas.sandbox.boxes import Boxes
from atlas.sandbox.checks import check
from atlas.sandbox.grade_function import execute_cases
from atlas.sandbox.grade_run import execute_inputs, execute_program
from atlas.sandbox.grade_tests import execute_checker, execute_tests
from atlas.types import Execution, Program, RunLimits


async def execute(program: Program, limits: RunLimits, boxes: Boxes) -> Execution:
    """Run a program in boxes, and say what that showed. Whatever the code does is in the answer.

    Raises:
        BadRequest: the program makes no sense: no cases, a bad literal or path, an unknown language.
        SandboxUnavailable: a failure of ours; says nothing about the program.
    """
    check(program, limits)
    if not languages.is_python(program.language) and program.mode not in ("run", "stdin"):
        raise BadRequest(f"mode {program.mode} is for Python; other languages have run and stdin", param="mode")
    if program.mode == "run":
        return await execute_program(program, limits, boxes)
    if program.mode == "stdin":
        _require(program.cases, "mode stdin needs cases, each with stdin and expected", param="cases")
        return await execute_inputs(program, limits, boxes)
    if program.mode == "function":
        _require(program.entry_point, "mode function needs entry_point", param="entry_point")
        if program.test_code:
            _require(not program.cases, "mode function takes cases or test_code, not both", param="cases")
            return await execute_checker(program, limits, boxes)
        _require(program.cases, "mode function needs cases, or a checker in test_code", param="cases")
        return await execute_cases(program, limits, boxes)
    if program.mode == "pytest":
        _require(program.test_code.strip(), "mode pytest needs test_code", param="test_code")
        return await execute_tests(program, limits, boxes)
    raise BadRequest(f"mode {program.mode} is not built yet", param="mode")


def _require(given: object, message: str, *, param: str) -> None:
    if not given:
        raise BadRequest(message, param=param)
