"""A change to a project as a task: candidates are edits, and the project's own tests judge them (Sandbox.check_project).

Tests and edit share a process there, so such a verdict is never sealed. One that shows nothing (no test failed without the edit)
is no proof, however well it ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from atlas.errors import BadRequest
from atlas.ralph import prompt
from atlas.ralph.feedback import TRACE_CHARS, trim
from atlas.ralph.visible import Suite
from atlas.types import Execution, Failure, Message, ProjectVerdict, Request, Snippet

ANSWER_LIMIT_CHARS = 200_000
THOUGHT_END = "</think>"


def project_suite(request: Request) -> Suite:
    """What a project's edits have to pass is known to the sandbox alone.

    Raises:
        BadRequest: there are other tests as well, or nothing to be changed is shown.
    """
    if request.tests.code or request.tests.cases:
        raise BadRequest("a project is judged by its own tests; leave the others out", param="tests")
    if not request.context:
        raise BadRequest("a project needs the files that are to be changed as context", param="context")
    return Suite((), "given", request.entry_point)


def project_prompt(request: Request, context: Sequence[Snippet], *, hint: str, system: str | None) -> tuple[Message, ...]:
    """Ask for an edit: of one function of one file in the words that the bundled model knows, else of whatever it takes."""
    task = request.task + (f"\n\nHint: {hint}" if hint else "")
    if request.entry_point and len(context) == 1:
        return prompt.rewrite(task, request.entry_point.rpartition(".")[2], context[0], system=system)
    return prompt.change(task, context, system=system)


def read_edit(answer: str) -> str:
    """An answer without its thinking; what of it is an edit, the sandbox reads."""
    return answer[:ANSWER_LIMIT_CHARS].rpartition(THOUGHT_END)[2].encode("utf-8", "ignore").decode().strip()


def execution_of(verdict: ProjectVerdict) -> Execution:
    """A verdict in the form of a run: the tests that had to be mended, and those that broke."""
    mended = sum(case.outcome == "passed" for case in verdict.fail_to_pass)
    is_heard = verdict.evidence == "tests"
    return Execution(
        outcome="completed" if verdict.passed and not is_heard else verdict.outcome,
        tier=verdict.tier,
        cases=(*verdict.fail_to_pass, *verdict.broken),
        tests_run=len(verdict.fail_to_pass) + verdict.num_pass_to_pass if is_heard and verdict.after else 0,
        tests_passed=mended + max(0, verdict.num_pass_to_pass - len(verdict.broken)) if is_heard and verdict.after else 0,
        stdout=verdict.after.stdout if verdict.after else "",
        stderr=verdict.after.stderr if verdict.after else "",
        error_message=verdict.rejection.message if verdict.rejection else verdict.message,
        wall_s=wall_s(verdict),
    )


def failure_of(verdict: ProjectVerdict) -> Failure | None:
    """What the model may be shown: why its edit did not fit, or the first test that fails."""
    if verdict.passed or verdict.outcome in ("killed", "tampered"):
        return None
    if verdict.rejection is not None:
        return Failure(traceback=trim(verdict.rejection.message, TRACE_CHARS))
    bad = next((case for case in (*verdict.broken, *verdict.fail_to_pass) if case.outcome != "passed"), None)
    said = f"{bad.name}\n{bad.message}" if bad else verdict.message or (verdict.after.stdout if verdict.after else "")
    return Failure(traceback=trim(said, TRACE_CHARS)) if said.strip() else None


def is_proof(verdict: ProjectVerdict) -> bool:
    """Whether something that failed without the edit succeeds with it."""
    if verdict.evidence == "exit_status":
        return verdict.before is not None and verdict.before.outcome != "completed"
    return bool(verdict.fail_to_pass)


def kept(verdict: ProjectVerdict) -> ProjectVerdict:
    """Without the two runs' output, for keeping."""
    return replace(verdict, before=None, after=None)


def wall_s(verdict: ProjectVerdict) -> float:
    return sum(run.wall_s for run in (verdict.before, verdict.after) if run is not None)
