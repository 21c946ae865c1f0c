"""The prompt of an attempt: the task, what helps with it, its visible tests, and what earlier attempts showed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from atlas.ralph import prompt
from atlas.ralph.policy import Step
from atlas.ralph.projects import project_prompt
from atlas.ralph.visible import Suite, shown_code, shown_examples, shown_programs
from atlas.types import Attempt, Candidate, CandidateRef, Message, Request, Snippet


def conversations(
    request: Request, suite: Suite | None, *, step: Step, context: Sequence[Snippet], attempts: Sequence[Attempt]
) -> Iterator[tuple[Message, ...]]:
    """The prompt of a step, then the same with less in it, for a model that cannot read as much."""
    lineage = _lineage(step.repaired, attempts)
    least = context if request.project is not None else ()  # there it is what is to be changed
    for snippets, failed in ((context, lineage), (least, lineage), (least, lineage[-1:]), (least, [])):
        messages = _first(request, suite, step, snippets)
        for candidate in failed:
            if candidate.failure is not None:
                answer = candidate.code if request.project is not None else prompt.code_block(candidate.code)
                messages = prompt.repair(messages, answer, candidate.failure)
        yield messages


def _first(request: Request, suite: Suite | None, step: Step, context: Sequence[Snippet]) -> tuple[Message, ...]:
    has_system = any(message.role == "system" for message in request.history)
    hint = prompt.another_plan(request.hint) if step.action == "plan" else request.hint
    system = None if has_system else prompt.SYSTEM
    if request.project is not None:
        return project_prompt(request, context, hint=hint, system=system)
    asked = prompt.solve(
        _task(request, suite),
        examples=shown_examples(suite) if suite else (),
        context=[*context, *(shown_code(suite) if suite else ())],
        hint=hint,
        system=system,
    )
    return (*asked[:-1], *request.history, asked[-1])


def _task(request: Request, suite: Suite | None) -> str:
    if suite is None:
        return request.task
    if any(check.mode == "stdin" for check in suite.checks):
        return prompt.program_task(request.task, shown_programs(suite))
    name = suite.entry_point.partition(".")[0]
    is_said = not name or name in request.task or any(name in example.call for example in shown_examples(suite))
    return request.task if is_said else prompt.named_task(request.task, suite.entry_point)


def _lineage(ref: CandidateRef | None, attempts: Sequence[Attempt]) -> list[Candidate]:
    """A candidate, and before it those whose repair it is."""
    if ref is None:
        return []
    attempt = attempts[ref.attempt - 1]
    candidate = next(candidate for candidate in attempt.candidates if candidate.ref == ref)
    return [*_lineage(attempt.repaired, attempts), candidate]
