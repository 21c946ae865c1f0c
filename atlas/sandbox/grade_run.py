"""Modes run and stdin: whole programs."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec.structs import replace

from atlas.errors import BadRequest
from atlas.sandbox import languages, outcomes
from atlas.sandbox.boxes import Boxes, BoxResult, BoxSpec
from atlas.sandbox.outcomes import Fault, ended_early, execution, failed_early, parse_fault, signal_name
from atlas.types import Case, CaseResult, Execution, LimitName, Outcome, Program, RunLimits

FILE = "main.py"
COMPILE_WALL_S = 30.0
MAX_TIMEOUTS = 3  # after so many the rest of the cases is skipped
MAX_TOGETHER_S = 120.0
INPUT_LIMIT_BYTES = 16 * 1024 * 1024
SHOWN_CHARS = 1000
MISSING_MODULE = ("ModuleNotFoundError", "ImportError")


async def execute_program(program: Program, limits: RunLimits, boxes: Boxes) -> Execution:
    """Run a program to its end.

    Raises:
        BadRequest: there is no such language here.
        SandboxUnavailable: a failure of ours.
    """
    spec = _spec(program, limits, stdin=_input(program.stdin, what="stdin"))
    return _conclude(await boxes.run(spec), boxes)


async def execute_inputs(program: Program, limits: RunLimits, boxes: Boxes) -> Execution:
    """Run a program on the input of each case, and compare what it writes.

    Raises:
        BadRequest: there is no such language here, or a case makes no sense.
        SandboxUnavailable: a failure of ours.
    """
    inputs = [_case_input(number, case) for number, case in enumerate(program.cases)]
    if not languages.is_python(program.language) and languages.find(program.language).compile:
        return await _execute_compiled(program, limits, boxes, inputs=inputs)
    executions: list[Execution] = []
    cases: list[CaseResult] = []
    for number, (case, stdin) in enumerate(zip(program.cases, inputs, strict=True)):
        if sum(done.outcome == "timeout" for done in executions) >= MAX_TIMEOUTS:
            cases.append(CaseResult(name=_name(number), outcome="skipped", message=f"{MAX_TIMEOUTS} cases had timed out"))
            continue
        execution_ = _conclude(await boxes.run(_spec(program, limits, stdin=stdin)), boxes)
        executions.append(execution_)
        if not execution_.compiled:
            return execution_
        cases.append(_judge(number, case, execution_))
    return _together(executions, cases)


def _input(text: str, *, what: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    if len(content) > INPUT_LIMIT_BYTES:
        raise BadRequest(f"{what} has {len(content)} bytes; {INPUT_LIMIT_BYTES} are the most")
    return content


def _case_input(number: int, case: Case) -> bytes:
    if case.stdin is None:
        raise BadRequest(f"case {number} has no stdin, which mode stdin needs (it may be empty)", param="cases")
    return _input(case.stdin, what=f"stdin of case {number}")


def _spec(program: Program, limits: RunLimits, *, stdin: bytes) -> BoxSpec:
    if languages.is_python(program.language):
        files = program.files | {FILE: program.code}
        return BoxSpec(runner="run", payload={}, files=files, stdin=stdin, limits=limits, fresh=program.fresh)
    language = languages.find(program.language)
    payload = {"compile": language.compile, "run": language.run, "inputs": None}
    return BoxSpec(
        runner="execute",
        payload=payload,
        files=program.files | {language.file: program.code},
        stdin=stdin,
        limits=_with_time_to_compile(limits) if language.compile else limits,
    )


def _with_time_to_compile(limits: RunLimits) -> RunLimits:
    return replace(limits, wall_s=limits.wall_s + COMPILE_WALL_S)


def _conclude(result: BoxResult, boxes: Boxes) -> Execution:
    """How a program ended. Frames are the program's own word, and only name what its exit code says already."""
    if hit := ended_early(result):
        return execution(boxes.tier, result, outcome=hit.outcome, limit=hit.limit)
    frame = next((frame for frame in result.frames if isinstance(frame, dict) and ("compile" in frame or "fault" in frame)), {})
    if fault := parse_fault(frame.get("compile")):
        return failed_early(boxes.tier, result, fault=fault, compiled=False)
    if result.exit_code == 0:
        return execution(boxes.tier, result, outcome="completed")
    fault = parse_fault(frame.get("fault")) or Fault(type=signal_name(result) or "ExitCode", message=_how(result))
    return execution(
        boxes.tier,
        result,
        outcome=_outcome_of(fault),
        limit=fault.limit,
        error_type=fault.type,
        error_message=outcomes.trim(fault.message),
    )


def _how(result: BoxResult) -> str:
    return f"the program was ended by {signal_name(result)}" if signal_name(result) else f"exit code {result.exit_code}"


def _outcome_of(fault: Fault) -> Outcome:
    if fault.limit == "memory":
        return "memory_limit"
    return "error" if fault.type in MISSING_MODULE else "failed"


def _name(number: int) -> str:
    return f"case {number}"


def _judge(number: int, case: Case, done: Execution) -> CaseResult:
    result = CaseResult(
        name=_name(number),
        outcome="failed",
        expected=case.expected[:SHOWN_CHARS],
        returned=done.stdout[:SHOWN_CHARS],
        wall_s=done.wall_s,
    )
    if done.outcome == "timeout":
        return replace(result, outcome="timeout", message=f"ended by the {done.limit} limit")
    if done.outcome != "completed":
        why = done.error_message or f"ended by the {done.limit} limit"
        return replace(result, outcome="error", message=outcomes.trim(done.stderr[-outcomes.TEXT_LIMIT_CHARS :] or why))
    difference = find_difference(done.stdout, case)
    return replace(result, outcome="failed" if difference else "passed", message=difference)


def find_difference(written: str, case: Case) -> str:
    """The first line of the output that is not as expected; "" if all are. White space at the ends of lines does not count."""
    returned, expected = _lines(written), _lines(case.expected)
    for number, (line, wanted) in enumerate(zip(returned, expected, strict=False), start=1):
        if not _is_same(line, wanted, case):
            return f"line {number}: expected {wanted[:SHOWN_CHARS]!r}, got {line[:SHOWN_CHARS]!r}"
    if len(returned) != len(expected):
        return f"expected {len(expected)} lines, got {len(returned)}"
    return ""


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _is_same(line: str, wanted: str, case: Case) -> bool:
    if line == wanted or case.compare != "approx":
        return line == wanted
    words, wanted_words = line.split(), wanted.split()
    return len(words) == len(wanted_words) and all(map(_is_close, words, wanted_words, [case.tolerance] * len(words)))


def _is_close(word: str, wanted: str, tolerance: float) -> bool:
    try:
        return word == wanted or math.isclose(float(word), float(wanted), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


def _together(executions: list[Execution], cases: list[CaseResult]) -> Execution:
    """One Execution of many: the first that went wrong gives its streams and its reason."""
    bad = next((number for number, case in enumerate(cases) if case.outcome != "passed"), None)
    shown = executions[min(bad or 0, len(executions) - 1)]
    outcome: Outcome = "passed" if bad is None else "failed" if shown.outcome == "completed" else shown.outcome
    is_wrong = bad is not None and shown.outcome == "completed"
    return replace(
        shown,
        outcome=outcome,
        sealed=True,
        cases=tuple(cases),
        tests_run=sum(case.outcome != "skipped" for case in cases),
        tests_passed=sum(case.outcome == "passed" for case in cases),
        error_type=outcomes.WRONG if is_wrong else shown.error_type,
        error_message=f"{cases[bad].name}: {cases[bad].message}" if bad is not None else "",
        wall_s=sum(done.wall_s for done in executions),
        cpu_s=sum(done.cpu_s for done in executions),
        peak_bytes=max(done.peak_bytes for done in executions),
    )


class Fed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one run of a compiled program did (inside/execute.py)."""

    case: int
    exit: int | str
    stdout: str
    stderr: str
    seconds: float


async def _execute_compiled(program: Program, limits: RunLimits, boxes: Boxes, *, inputs: list[bytes]) -> Execution:
    """Compile once, then one run after another in the same box."""
    language = languages.find(program.language)
    seconds = min(limits.wall_s * len(inputs), max(MAX_TOGETHER_S, limits.wall_s))
    payload: dict[str, Any] = {
        "compile": language.compile,
        "run": language.run,
        "inputs": [content.decode("utf-8", "surrogatepass") for content in inputs],
        "seconds": limits.wall_s,
        "output_bytes": limits.output_bytes,
    }
    spec = BoxSpec(
        runner="execute",
        payload=payload,
        files=program.files | {language.file: program.code},
        limits=replace(limits, wall_s=seconds + COMPILE_WALL_S),
    )
    result = await boxes.run(spec)
    frames = result.frames
    if not frames or frames[0] != {"compiled": True}:
        return _not_compiled(result, boxes)
    try:
        fed = [msgspec.convert(frame, Fed) for frame in frames[1:] if isinstance(frame, dict) and "end" not in frame]
    except msgspec.ValidationError as error:
        return outcomes.tampered(boxes.tier, result, reason=str(error))
    if [one.case for one in fed] != list(range(len(fed))) or len(fed) > len(inputs):
        return outcomes.tampered(boxes.tier, result, reason="records of runs out of order")
    executions = [_conclude_fed(one, result, limits, boxes) for one in fed]
    if len(fed) < len(inputs):
        executions.append(_conclude(result, boxes))
    cases = [_judge(number, *pair) for number, pair in enumerate(zip(program.cases, executions, strict=False))]
    cases += [CaseResult(name=_name(number), outcome="skipped") for number in range(len(cases), len(inputs))]
    return replace(_together(executions, cases), wall_s=result.wall_s, cpu_s=result.cpu_s)


def _not_compiled(result: BoxResult, boxes: Boxes) -> Execution:
    frame = result.frames[0] if result.frames and isinstance(result.frames[0], dict) else {}
    if fault := parse_fault(frame.get("compile")):
        return failed_early(boxes.tier, result, fault=fault, compiled=False)
    return outcomes.no_result(boxes.tier, result, message="the compiler did not end", compiled=False)


def _conclude_fed(fed: Fed, result: BoxResult, limits: RunLimits, boxes: Boxes) -> Execution:
    outcome: Outcome = "completed" if fed.exit == 0 else "failed"
    limit: LimitName | None = None
    if fed.exit == "timeout":
        outcome, limit = "timeout", "wall"
    elif len(fed.stdout) > limits.output_bytes:
        outcome, limit = "output_limit", "output"
    exit_code = fed.exit if isinstance(fed.exit, int) else None
    fault = Fault(type="ExitCode", message=f"exit code {exit_code}") if outcome == "failed" else Fault(type="")
    return replace(
        execution(boxes.tier, result, outcome=outcome, limit=limit, exit_code=exit_code),
        stdout=fed.stdout,
        stderr=fed.stderr,
        wall_s=outcomes.seconds_of(fed.seconds),
        error_type=fault.type,
        error_message=fault.message,
    )
