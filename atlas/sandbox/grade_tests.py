"""Mode pytest, and mode function with a checker: tests judge the code, from a box of their own wherever they can."""

from __future__ import annotations

import secrets
from typing import Any

from msgspec.structs import replace

from atlas.sandbox import outcomes
from atlas.sandbox.boxes import Boxes, BoxResult, BoxSpec
from atlas.sandbox.checks import check_entry
from atlas.sandbox.outcomes import ended_early, execution, failed_early, no_result, not_loaded, parse_fault, tampered
from atlas.sandbox.sealing import Sealing, can_seal, can_seal_checker, expected_tests, has_check
from atlas.sandbox.transcript import Forged, Transcript, missing, read
from atlas.types import CaseResult, Execution, Program, RunLimits

CODE_FILE = "solution.py"
TESTS_FILE = "test_solution.py"
CHECKER_FILE = "checker.py"
CONFTEST = "conftest.py"


async def execute_tests(program: Program, limits: RunLimits, boxes: Boxes) -> Execution:
    """Run a test file with pytest.

    Raises:
        SandboxUnavailable: a failure of ours.
    """
    has_conftest = any(path.rpartition("/")[2] == CONFTEST for path in program.files)
    sealing = Sealing(ok=False, reason="there is a conftest.py") if has_conftest else can_seal(program.test_code)
    tests = _box(program, limits, runner="sealed_tests", payload={"names": sealing.names}, profile="pytest")
    tests = replace(tests, tests={TESTS_FILE: program.test_code})
    if sealing.ok:
        return await _execute_sealed(program, tests, _candidate(program, limits, sealing, entry=""), boxes)
    beside = {path: text for path, text in program.files.items() if path.rpartition("/")[2] == CONFTEST}
    plain = replace(
        tests,
        runner="plain_tests",
        files={path: text for path, text in program.files.items() if path not in beside} | {CODE_FILE: program.code},
        tests=beside | tests.tests,
        payload={"has_conftest": has_conftest},
    )
    return await _execute_plain(program, plain, boxes)


async def execute_checker(program: Program, limits: RunLimits, boxes: Boxes) -> Execution:
    """Run a checker on the entry point.

    Raises:
        BadRequest: the entry point is none.
        SandboxUnavailable: a failure of ours.
    """
    check_entry(program.entry_point)
    sealing = can_seal_checker(program.test_code, program.entry_point)
    payload = {"names": sealing.names, "entry": program.entry_point, "has_check": has_check(program.test_code)}
    tests = replace(_box(program, limits, runner="checker", payload=payload), tests={CHECKER_FILE: program.test_code})
    if sealing.ok:
        return await _execute_sealed(program, tests, _candidate(program, limits, sealing, entry=program.entry_point), boxes)
    plain = replace(tests, runner="plain_checker", files=program.files | {CODE_FILE: program.code})
    return await _execute_plain(program, plain, boxes)


def _box(program: Program, limits: RunLimits, *, runner: str, payload: dict[str, Any], profile: Any = "lite") -> BoxSpec:
    return BoxSpec(runner=runner, payload=payload, profile=profile, limits=limits, fresh=program.fresh, has_keeper=False)


def _candidate(program: Program, limits: RunLimits, sealing: Sealing, *, entry: str) -> BoxSpec:
    spec = _box(program, limits, runner="candidate", payload={"names": sealing.names, "entry": entry})
    return replace(spec, files=program.files | {CODE_FILE: program.code})


async def _execute_sealed(program: Program, tests: BoxSpec, candidate: BoxSpec, boxes: Boxes) -> Execution:
    judging, judged = await boxes.run_pair(tests, candidate)
    if failure := not_loaded(judged, boxes.tier):
        return replace(failure, sealed=True)
    try:
        transcript = read(judging)
    except Forged as error:
        return tampered(boxes.tier, judging, judged, reason=str(error), sealed=True)
    verdict = _conclude(program, transcript, judging, boxes)
    return replace(_name_limit(verdict, transcript, judged), sealed=True, **_used(judging, judged))


def _used(judging: BoxResult, judged: BoxResult) -> dict[str, Any]:
    return {"cpu_s": judging.cpu_s + judged.cpu_s, "peak_bytes": judging.peak_bytes + judged.peak_bytes}


def _name_limit(verdict: Execution, transcript: Transcript, judged: BoxResult) -> Execution:
    """What happened to the code's own box, where that is why tests did not pass."""
    if verdict.outcome not in ("failed", "error"):
        return verdict
    end = transcript.end
    if end and end.is_forged:
        return replace(verdict, outcome="tampered", error_type="Tampered", error_message=end.lost)
    if end and end.lost:
        hit = ended_early(judged)
        if hit:
            return replace(verdict, outcome=hit.outcome, limit=hit.limit, exit_code=None)
        how = outcomes.signal_name(judged) or f"exit code {judged.exit_code}"
        return replace(verdict, outcome="error", error_type=outcomes.NO_RESULT, error_message=f"{end.lost} ({how})")
    told = [frame["raised"] for frame in judged.frames if isinstance(frame, dict) and "raised" in frame]
    limit = next((fault.limit for fault in map(parse_fault, told) if fault and fault.limit), None)
    return replace(verdict, limit=limit, outcome="memory_limit" if limit == "memory" else verdict.outcome)


async def _execute_plain(program: Program, spec: BoxSpec, boxes: Boxes) -> Execution:
    """Tests and code in one process, where nothing is beyond the code's reach: `sealed` is False."""
    nonce = secrets.token_hex(16)
    result = await boxes.run(replace(spec, payload=spec.payload | {"nonce": nonce}))
    try:
        transcript = read(result, nonce)
    except Forged as error:
        return tampered(boxes.tier, result, reason=str(error))
    if fault := transcript.not_compiled or transcript.not_loaded:
        return failed_early(boxes.tier, result, fault=fault, compiled=transcript.not_compiled is None)
    verdict = _conclude(program, transcript, result, boxes)
    if verdict.passed and transcript.end and transcript.end.tampering:
        reason = "; ".join(transcript.end.tampering)
        return replace(verdict, outcome="tampered", error_type="Tampered", error_message=reason)
    return verdict


def _conclude(program: Program, transcript: Transcript, result: BoxResult, boxes: Boxes) -> Execution:
    """The verdict: passed only if every test there is has passed in every phase, and the session came to its end."""
    cases = transcript.cases(is_pytest=program.mode == "pytest")
    if transcript.end is None or result.ending != "exit" or result.exit_code != 0:
        cut_off = no_result(boxes.tier, result, message="the process ended before the tests did")
        return _with_cases(cut_off, _cut(cases, cut_off))
    if transcript.broken:
        fault = transcript.broken.fault
        message = outcomes.trim(transcript.broken.broken)
        return execution(boxes.tier, result, outcome="error", error_type=fault.type, error_message=message)
    if not cases:
        return execution(boxes.tier, result, outcome="error", error_type="NoTests", error_message="no tests ran")
    if program.mode == "pytest" and (absent := list(missing(expected_tests(program.test_code), cases))):
        message = f"no result of {', '.join(absent[:10])}"
        return execution(boxes.tier, result, outcome="error", error_type="NotRun", error_message=message, cases=tuple(cases))
    bad = next((case for case in cases if case.outcome != "passed"), None)
    if bad is None and transcript.end.end == 0:
        return execution(boxes.tier, result, outcome="passed", cases=tuple(cases))
    message = bad.message if bad else f"pytest ended with status {transcript.end.end}"
    failed = execution(boxes.tier, result, outcome="failed", cases=tuple(cases))
    return replace(failed, error_type=transcript.first_type(), error_message=message)


def _cut(cases: list[CaseResult], cut_off: Execution) -> list[CaseResult]:
    """The first test without a result is the one that was running; the others did not come to it."""
    running = next((number for number, case in enumerate(cases) if case.outcome == "error" and not case.message), len(cases))
    rest = [replace(case, outcome="skipped") if case.outcome == "error" else case for case in cases[running + 1 :]]
    now = [replace(case, outcome=outcomes.case_outcome(cut_off.outcome)) for case in cases[running : running + 1]]
    return [*cases[:running], *now, *rest]


def _with_cases(done: Execution, cases: list[CaseResult]) -> Execution:
    run = sum(case.outcome != "skipped" for case in cases)
    passed = sum(case.outcome == "passed" for case in cases)
    return replace(done, cases=tuple(cases), tests_run=run, tests_passed=passed)
