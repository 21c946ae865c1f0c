"""What happens while a task is solved, as lines for people."""

from __future__ import annotations

from functools import singledispatch

from atlas.types import (
    AttemptStarted,
    CandidateEnded,
    CandidateRef,
    CandidateTested,
    RunStarted,
    SelfTestsWritten,
    SolveEvent,
    WorkRetried,
)

TOLD_CHARS = 160


@singledispatch
def told(event: SolveEvent) -> str:
    """An event as a line; empty for those that say nothing new."""
    return ""


@told.register
def _(event: RunStarted) -> str:
    held_back = f", {event.num_held_back} of them held back" if event.num_held_back else ""
    if event.num_tests:
        return f"{event.num_tests} tests{held_back}"
    return "the project's own tests" if event.source == "given" else "no tests: the model will be asked for some"


@told.register
def _(event: SelfTestsWritten) -> str:
    return f"the model wrote {event.num_tests} tests"


@told.register
def _(event: AttemptStarted) -> str:
    return (
        f"attempt {event.attempt}: {event.k} candidates at temperature {event.temperature:.2g} ({event.action}: {event.reason})"
    )


@told.register
def _(event: CandidateEnded) -> str:
    return "" if event.state == "untested" else f"  {candidate_name(event.candidate)} {event.state}"


@told.register
def _(event: CandidateTested) -> str:
    last = (event.message.strip().splitlines() or [""])[-1][:TOLD_CHARS]
    why = f": {last}" if last and event.state != "passed" else ""
    return f"  {candidate_name(event.candidate)} {event.state}, {event.tests_passed} of {event.tests_run} tests{why}"


@told.register
def _(event: WorkRetried) -> str:
    return f"  {event.what} failed: {event.failure.message}; trying again in {event.after_s:.2g} s"


def candidate_name(ref: CandidateRef) -> str:
    """A candidate as people call it: attempt and place, both from 1."""
    return f"{ref.attempt}.{ref.index + 1}"
