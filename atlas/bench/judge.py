"""Hidden tests, and the only one who reads them.

A Judge is never part of a Request: it is asked after the Run is closed, about code that cannot be changed any more. Only this
room and the sandbox may import this module; the import contract in pyproject.toml holds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import field

from atlas.ralph import persist
from atlas.types import Case, Execution, Outcome, Program, RunLimits, Value

RunProgram = Callable[[Program, RunLimits], Awaitable[Execution]]


class HiddenTests(Value, frozen=True, kw_only=True):
    """Tests that nobody who writes an answer has seen: a checker (asserts, or a function `check(candidate)`), cases, or both."""

    code: str = ""
    cases: tuple[Case, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.code.strip() and not self.cases


class Grade(Value, frozen=True, kw_only=True):
    """What hidden tests said of one program.

    Attributes:
        passed: all hidden tests.
        passed_stronger: the stronger ones as well; equal to `passed` where a suite has none.
        outcome: of the run that decided it.
    """

    passed: bool
    passed_stronger: bool
    outcome: Outcome


class Judge(Value, frozen=True, kw_only=True):
    """The hidden tests of one task.

    Attributes:
        entry_point: function that is called; empty for whole programs.
        hidden: what an answer has to pass to be right.
        stronger: further tests, by which answers that were called verified are measured.
    """

    hidden: HiddenTests
    stronger: HiddenTests = HiddenTests()
    entry_point: str = ""
    language: str = "python"
    files: dict[str, str] = field(default_factory=dict)
    limits: RunLimits = RunLimits()

    async def grade(self, code: str, run: RunProgram) -> Grade:
        """Run `code` on the hidden tests.

        Raises:
            AtlasError: the sandbox failed, again and again; that says nothing about the code.
        """
        outcome = await self._run(code, self.hidden, run)
        if outcome != "passed" or self.stronger.is_empty:
            return Grade(passed=outcome == "passed", passed_stronger=outcome == "passed", outcome=outcome)
        stronger = await self._run(code, self.stronger, run)
        return Grade(passed=True, passed_stronger=stronger == "passed", outcome=stronger)

    async def _run(self, code: str, tests: HiddenTests, run: RunProgram) -> Outcome:
        """Outcome of the first program that did not pass, or passed."""
        for program in self._programs(code, tests):

            async def once(program: Program = program) -> Execution:
                return await run(program, self.limits)

            execution = await persist(once, _wait)
            if not execution.passed:
                return "failed" if execution.outcome == "passed" else execution.outcome
        return "passed"

    def _programs(self, code: str, tests: HiddenTests) -> list[Program]:
        calls = tuple(case for case in tests.cases if case.stdin is None)
        runs = tuple(case for case in tests.cases if case.stdin is not None)
        programs = []
        if calls:
            programs.append(Program(code=code, mode="function", entry_point=self.entry_point, cases=calls, files=self.files))
        if tests.code.strip():
            programs.append(
                Program(code=code, mode="function", entry_point=self.entry_point, test_code=tests.code, files=self.files)
            )
        if runs:
            programs.append(Program(code=code, mode="stdin", cases=runs, language=self.language, files=self.files))
        return programs


async def _wait(_error: Exception, after_s: float) -> None:
    await asyncio.sleep(after_s)
