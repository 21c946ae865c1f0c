"""What a failed run may tell the model: the first failing test that is not held back, as it really failed, trimmed.

Only what running the code showed is ever here. A failure of ours is an exception and does not come this way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atlas.ralph.visible import Suite
from atlas.types import CaseResult, Execution, Failure, Program

VALUE_CHARS = 400
TRACE_CHARS = 1500
INPUT_CHARS = 600
_BOX_PATHS = re.compile(r"/box/(?:work|tests)/")
_LIMITS = {
    "wall": "TimeoutError: the code ran too long and was ended",
    "cpu": "TimeoutError: the code used too much processor time and was ended",
    "memory": "MemoryError: the code used too much memory and was ended",
    "output": "OverflowError: the code wrote too much output and was ended",
    "processes": "OSError: the code started too many processes or threads",
    "file_size": "OSError: the code wrote too much to files",
}


class Shown(NamedTuple):
    """A failing test, and where it stands in the suite."""

    check: int
    position: int
    result: CaseResult


def failure_of(executions: Sequence[Execution], suite: Suite) -> Failure | None:
    """What the model may be shown of a candidate that failed; None if there is nothing.

    Args:
        executions: of the suite's checks, in order; those after the first failure may be missing.
        suite: says what is held back.
    """
    for number, execution in enumerate(executions):
        if execution.outcome in ("passed", "completed", "killed", "tampered"):
            continue
        if not any(result.outcome in ("failed", "error", "timeout") for result in execution.cases):
            return _of_whole(execution)
        shown = [failing for failing in _failing(execution, number) if not suite.is_held_back(*failing)]
        found = (_of_test(failing, suite.checks[number], execution, suite) for failing in shown)
        return next((failure for failure in found if failure is not None), None)
    return None


def trim(text: str, limit_chars: int) -> str:
    """Head and tail of a long text; the tail, where tracebacks say what happened, is the larger part. Paths lose the box's."""
    text = _BOX_PATHS.sub("", text).strip("\n")
    if len(text) <= limit_chars:
        return text
    head = limit_chars // 4
    return f"{text[:head]}\n...\n{text[-(limit_chars - head) :]}"


def _failing(execution: Execution, number: int) -> Iterator[Shown]:
    for position, result in enumerate(execution.cases):
        if result.outcome in ("failed", "error", "timeout"):
            yield Shown(number, position, result)


def _of_whole(execution: Execution) -> Failure | None:
    """The code did not come as far as a test."""
    if execution.limit in _LIMITS:
        return Failure(traceback=_LIMITS[execution.limit])
    said = execution.stderr if "Traceback" in execution.stderr else execution.error_message or execution.stderr
    return Failure(traceback=trim(said, TRACE_CHARS)) if said.strip() else None


def _of_test(failing: Shown, check: Program, execution: Execution, suite: Suite) -> Failure | None:
    result = failing.result
    if result.outcome == "timeout" or (result.outcome == "error" and not result.message):
        return Failure(traceback=_how_ended(result, execution))
    if result.outcome == "failed" and suite.source == "generated":
        return None  # the model's own expectation may be what is wrong
    if check.mode == "stdin" and result.outcome == "failed":
        return Failure(traceback=_difference(check.cases[failing.position].stdin or "", result))
    if result.outcome == "failed" and result.expected and result.returned:
        returned = trim(result.returned, VALUE_CHARS)
        return Failure(call=trim(result.name, VALUE_CHARS), expected=trim(result.expected, VALUE_CHARS), returned=returned)
    return Failure(traceback=trim(result.message or f"this test fails: {result.name}", TRACE_CHARS))


def _how_ended(result: CaseResult, execution: Execution) -> str:
    limit = _LIMITS.get(execution.limit or "", "the process ended before there was a result")
    return f"{limit}\n(in {trim(result.name, VALUE_CHARS)})"


def _difference(stdin: str, result: CaseResult) -> str:
    given, wanted, written = (trim(text, INPUT_CHARS) for text in (stdin, result.expected, result.returned))
    return f"Input:\n{given}\n\nExpected output:\n{wanted}\n\nActual output:\n{written}"
