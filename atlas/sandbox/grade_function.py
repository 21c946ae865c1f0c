"""Mode function on cases: values come out of one box, and are compared here."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from atlas.errors import BadRequest
from atlas.sandbox import literals
from atlas.sandbox.boxes import Boxes, BoxResult, BoxSpec
from atlas.sandbox.checks import check_entry
from atlas.sandbox.compare import matches, show
from atlas.sandbox.inside.values import Malformed
from atlas.sandbox.outcomes import (
    WRONG,
    Fault,
    case_outcome,
    execution,
    failed_early,
    no_result,
    not_loaded,
    seconds_of,
    tampered,
)
from atlas.types import Case, CaseOutcome, CaseResult, Execution, Program, RunLimits

SHOWN_CHARS = 1000
NAME_CHARS = 200
FILE = "solution.py"
REMEMBERED_CHARS = 2000
NUM_REMEMBERED = 4096


class Prepared(NamedTuple):
    """A case, its literals parsed."""

    case: Case
    name: str
    args: Any
    kwargs: Any
    expected: Any
    shown: str  # what was expected, for people


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a box says of one case."""

    case: int
    value: Any = msgspec.UNSET
    strange: str | None = None
    fault: Fault | None = None
    seconds: float = 0.0


async def execute_cases(program: Program, limits: RunLimits, boxes: Boxes) -> Execution:
    """Call the entry point on each case.

    Raises:
        BadRequest: an entry point, a case or a literal makes no sense.
        SandboxUnavailable: a failure of ours.
    """
    check_entry(program.entry_point)
    prepared = [_prepared(number, case, program.entry_point) for number, case in enumerate(program.cases)]
    spec = BoxSpec(
        runner="function",
        payload={"entry": program.entry_point, "cases": [(case.args, case.kwargs) for case in prepared]},
        files=program.files | {FILE: program.code},
        limits=limits,
        fresh=program.fresh,
        has_keeper=False,
    )
    return judge(prepared, await boxes.run(spec), boxes)


def _prepared(number: int, case: Case, entry_point: str) -> Prepared:
    """As `_prepare`; many candidates are asked the same, and parsing costs the pool more than everything else it does."""
    is_small = len(case.args) + len(case.kwargs) + len(case.expected) <= REMEMBERED_CHARS
    return (_remember if is_small else _prepare)(number, case, entry_point)


def _prepare(number: int, case: Case, entry_point: str) -> Prepared:
    if case.stdin is not None:
        raise BadRequest(f"case {number} has stdin, which mode function does not know; use mode stdin", param="cases")
    args, args_encoded = literals.encoded(case.args, what=f"args of case {number}")
    kwargs, kwargs_encoded = literals.encoded(case.kwargs, what=f"kwargs of case {number}")
    if not isinstance(args, (tuple, list)):
        raise BadRequest(f"args of case {number} are no tuple and no list: ({case.args[:NAME_CHARS]},) is one", param="cases")
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise BadRequest(f"kwargs of case {number} are no dict of names", param="cases")
    if not case.expected.strip():
        raise BadRequest(f"case {number} expects nothing; give a literal, `None` for no value", param="cases")
    _, expected = literals.encoded(case.expected, what=f"expected of case {number}")
    shown = ", ".join(
        [show(arg, NAME_CHARS) for arg in _items(args_encoded)] + [f"{key}={value!r}" for key, value in kwargs.items()]
    )
    name = f"{entry_point}({shown})"[:NAME_CHARS]
    return Prepared(case, name, args_encoded, kwargs_encoded, expected, show(expected, SHOWN_CHARS))


_remember = lru_cache(maxsize=NUM_REMEMBERED)(_prepare)


def _items(encoded: Any) -> list[Any]:
    return encoded if isinstance(encoded, list) else encoded["tuple"]


def judge(prepared: list[Prepared], result: BoxResult, boxes: Boxes) -> Execution:
    """What the frames of a box prove. They come from untrusted code: only right values make a pass."""
    if failure := not_loaded(result, boxes.tier):
        return failure
    if fault := _missing(result):
        return failed_early(boxes.tier, result, fault=fault)
    try:
        reports = _reports(result, len(prepared))
        cases = [_judge_case(*pair) for pair in zip(prepared, reports, strict=False)]
    except (msgspec.ValidationError, Malformed) as error:
        return tampered(boxes.tier, result, reason=str(error))
    if len(reports) < len(prepared) or result.ending != "exit" or result.exit_code != 0:
        return _cut_off(prepared, cases, result, boxes)
    return _concluded(cases, reports, result, boxes)


def _missing(result: BoxResult) -> Fault | None:
    frame = result.frames[1] if len(result.frames) == 2 else None
    message = frame.get("missing") if isinstance(frame, dict) else None
    return Fault(type="NoEntryPoint", message=message) if isinstance(message, str) else None


def _reports(result: BoxResult, num_cases: int) -> list[Report]:
    """One for each case that has ended.

    Raises:
        Malformed: a frame is out of order, or one too many.
        msgspec.ValidationError: a frame is none of ours.
    """
    frames = list(result.frames[1:])
    if len(frames) > num_cases:
        if frames.pop() != {"end": num_cases}:
            raise Malformed("more records than cases")
    elif len(frames) == num_cases or (result.is_damaged and result.ending == "exit"):
        raise Malformed("the last record is missing")
    reports = [msgspec.convert(frame, Report) for frame in frames]
    if [report.case for report in reports] != list(range(min(len(reports), num_cases))):
        raise Malformed("records out of order")
    return reports


def _judge_case(prepared: Prepared, report: Report) -> CaseResult:
    outcome, returned, message = _judgement(prepared, report)
    return CaseResult(
        name=prepared.name,
        outcome=outcome,
        expected=prepared.shown,
        returned=returned,
        message=message,
        wall_s=seconds_of(report.seconds),
    )


def _judgement(prepared: Prepared, report: Report) -> tuple[CaseOutcome, str, str]:
    """Outcome, what was returned, and a message."""
    if report.fault:
        return "error", "", report.fault.text
    if report.strange is not None or report.value is msgspec.UNSET:
        return "failed", "", f"returned {report.strange}; only plain values can be compared"
    case = prepared.case
    is_right = matches(report.value, prepared.expected, how=case.compare, tolerance=case.tolerance)
    returned = show(report.value, SHOWN_CHARS)
    return ("passed", returned, "") if is_right else ("failed", returned, f"expected {prepared.shown}, returned {returned}")


def _concluded(cases: list[CaseResult], reports: list[Report], result: BoxResult, boxes: Boxes) -> Execution:
    bad = next((number for number, case in enumerate(cases) if case.outcome != "passed"), None)
    if bad is None:
        return execution(boxes.tier, result, outcome="passed", cases=tuple(cases), sealed=True)
    faults = [report.fault for report in reports if report.fault]
    limit = next((fault.limit for fault in faults if fault.limit), None)
    return execution(
        boxes.tier,
        result,
        outcome="memory_limit" if limit == "memory" else "failed",
        limit=limit,
        cases=tuple(cases),
        sealed=True,
        error_type=faults[0].type if faults else WRONG,
        error_message=cases[bad].message,
    )


def _cut_off(prepared: list[Prepared], cases: list[CaseResult], result: BoxResult, boxes: Boxes) -> Execution:
    """The box ended before all cases had: the first without a result is the one it ended in."""
    ending = no_result(boxes.tier, result, message="the process ended before every case had a result")
    outcomes: list[CaseOutcome] = [case_outcome(ending.outcome), *["skipped"] * len(prepared)]  # type: ignore[list-item]
    rest = zip(prepared[len(cases) :], outcomes, strict=False)
    cases += [CaseResult(name=case.name, outcome=outcome, expected=case.shown) for case, outcome in rest]
    passed = sum(case.outcome == "passed" for case in cases)
    run = sum(case.outcome != "skipped" for case in cases)
    return replace(ending, cases=tuple(cases), sealed=True, tests_run=run, tests_passed=passed)
