"""Fail-to-pass and pass-to-pass: two runs of a project's tests compared. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atlas.errors import BadRequest
from atlas.sandbox.project_results import name_some
from atlas.types import CaseResult, Outcome, ProjectRun

BROKEN_OFF: tuple[Outcome, ...] = ("error", "timeout", "memory_limit", "output_limit", "killed")
INSIDE = ("::", "[", "/")  # what follows a node id in the ids of the tests below it
NOTHING_FAILED = "no test failed without the edit: that nothing broke is all that was shown"
SUCCEEDED_BEFORE = "the command succeeds without the edit, too: that it still does is all that was shown"

Results = dict[str, CaseResult]


def compare(before: ProjectRun, after: ProjectRun, *, fail_to_pass: Sequence[str], signs: Sequence[str]) -> dict[str, Any]:
    """Fields of a ProjectVerdict, where tests were heard.

    Args:
        before: the run without the edit.
        after: the run with it.
        fail_to_pass: node ids; empty: all that failed before.
        signs: of interference that the edit's text shows.
    """
    fixed = _fail_to_pass(before, after, fail_to_pass)
    passed_before = [case for case in before.cases if case.outcome == "passed"]
    broken = [*_broken(passed_before, after), *_newly_failing(before, after, fixed)]
    facts = {"fail_to_pass": tuple(fixed), "broken": tuple(broken), "num_pass_to_pass": len(passed_before)}
    outcome, message = _decide(after, fixed, broken)
    return facts | {"outcome": outcome, "message": message} | _tampering(before, after, signs)


def compare_status(before: ProjectRun, after: ProjectRun, *, signs: Sequence[str]) -> dict[str, Any]:
    """Fields of a ProjectVerdict, where nothing but the exit statuses is known."""
    outcome: Outcome = "passed" if after.outcome == "completed" else after.outcome
    message = SUCCEEDED_BEFORE if before.outcome == after.outcome == "completed" else after.message
    return {"evidence": "exit_status", "outcome": outcome, "message": message} | _tampering(before, after, signs)


def _tampering(before: ProjectRun, after: ProjectRun, signs: Sequence[str]) -> dict[str, Any]:
    """What the project does by itself is nobody's tampering."""
    caught = [*signs, *(sign for sign in after.signs if sign not in before.signs)]
    caught += [
        f"pytest had a plugin that it has not without the edit: {name}" for name in after.plugins if name not in before.plugins
    ]
    if after.outcome == "tampered":
        caught.append(after.message)
    return {"outcome": "tampered", "tampering": tuple(caught), "message": caught[0]} if caught else {}


def _decide(after: ProjectRun, fixed: Sequence[CaseResult], broken: Sequence[CaseResult]) -> tuple[Outcome, str]:
    if after.outcome in BROKEN_OFF:
        return after.outcome, after.message
    if broken:
        return "failed", name_some("broken by the edit", [case.name for case in broken])
    if failing := [case.name for case in fixed if case.outcome != "passed"]:
        return "failed", name_some("still failing", failing)
    if after.outcome == "failed" and not (after.uncollected or any(_is_bad(case) for case in after.cases)):
        return "failed", after.message  # every test passed, and the exit status says otherwise
    return "passed", "" if fixed else NOTHING_FAILED


def _is_bad(case: CaseResult) -> bool:
    return case.outcome not in ("passed", "skipped")


def _fail_to_pass(before: ProjectRun, after: ProjectRun, given: Sequence[str]) -> list[CaseResult]:
    """What has to pass, as it is now.

    Raises:
        BadRequest: a given test passes without the edit.
    """
    if not given:
        failed = [case.name for case in before.cases if _is_bad(case)]
        return [_now(name, after) for name in (*failed, *(case.name for case in before.uncollected))]
    for name in given:
        if _now(name, before).outcome == "passed":
            raise BadRequest(f"{name} passes without the edit, so it cannot show that the edit mends it", param="fail_to_pass")
    return [_now(name, after) for name in given]


def _now(name: str, run: ProjectRun) -> CaseResult:
    """What became of a test, or of all tests below a node."""
    for results in (run.cases, run.uncollected):
        if found := next((case for case in results if case.name == name), None):
            return found
    below = [case for case in (*run.cases, *run.uncollected) if case.name.startswith(tuple(name + mark for mark in INSIDE))]
    if not below:
        return _missing(name, run)
    bad = next((case for case in below if _is_bad(case)), None)
    outcome = "passed" if any(case.outcome == "passed" for case in below) else "skipped"
    return CaseResult(name=name, outcome=bad.outcome if bad else outcome, message=bad.message if bad else "")  # type: ignore[arg-type]


def _missing(name: str, run: ProjectRun) -> CaseResult:
    """A test that is not there is not one that passes."""
    place = next((case for case in run.uncollected if name.startswith(tuple(case.name + mark for mark in INSIDE))), None)
    message = f"it could not be collected: {place.message}" if place else "there is no such test in this run"
    return CaseResult(name=name, outcome="error", message=message)


def _broken(passed_before: Sequence[CaseResult], after: ProjectRun) -> list[CaseResult]:
    now = {case.name: case for case in after.cases}
    results = (now.get(case.name) or _missing(case.name, after) for case in passed_before)
    return [result for result in results if result.outcome != "passed"]


def _newly_failing(before: ProjectRun, after: ProjectRun, fixed: Sequence[CaseResult]) -> list[CaseResult]:
    """Tests and files that were not there, or could not be collected, before."""
    known = {case.name for case in (*before.cases, *before.uncollected, *fixed)}
    covered = tuple(name + mark for name in known for mark in INSIDE)
    new = (case for case in (*after.cases, *after.uncollected) if case.name not in known)
    return [case for case in new if _is_bad(case) and not case.name.startswith(covered)]
