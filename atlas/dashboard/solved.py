"""A task's run as its page shows it: attempts side by side, what tests said, how each differs from its origin. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atlas.ralph import candidate_name
from atlas.types import Attempt, Candidate, CandidateRef, CandidateState, CaseResult, Execution, Run

SHOWN_CANDIDATES = 12  # of an attempt; the others are counted
SHOWN_CASES = 12
SHOWN_CHARS = 20_000
SHOWN_BARS = 60
MOODS: dict[CandidateState, str] = {
    "passed": "good",
    "failed": "bad",
    "unconfirmed": "bad",
    "duplicate": "off",
    "no_code": "warn",
    "repeating": "warn",
    "untested": "off",
    "cancelled": "off",
}


class Line(NamedTuple):
    """Of a difference: `kind` is add, del, hunk or same."""

    kind: str
    text: str


class ShownCandidate(NamedTuple):
    """`cases`: those that failed first; `words`: what is to be said where there are none."""

    name: str
    state: str
    mood: str
    is_winner: bool
    num_tokens: int
    counts: str
    code: str
    cases: tuple[CaseResult, ...]
    num_more_cases: int
    words: str
    output: str
    is_open: bool


class ShownAttempt(NamedTuple):
    """`diff`: from the candidate `against` to the best of this attempt; empty where there is nothing to compare."""

    number: int
    action: str
    reason: str
    temperature: float
    wall_s: float
    num_tokens: int
    candidates: tuple[ShownCandidate, ...]
    num_more: int
    against: str
    to: str
    diff: tuple[Line, ...]


class Bar(NamedTuple):
    """A candidate on the time line, in hundredths of the whole: written, then tested."""

    name: str
    mood: str
    state: str
    left: float
    width: float
    tested_left: float
    tested_width: float
    ended_s: float
    tested_s: float | None


def shown_attempts(attempts: Sequence[Attempt], winner: CandidateRef | None) -> list[ShownAttempt]:
    known = {candidate.ref: candidate for attempt in attempts for candidate in attempt.candidates}
    found, before = [], None
    for attempt in attempts:
        best = best_of(attempt, winner)
        source = known.get(attempt.repaired) if attempt.repaired else before
        found.append(_attempt(attempt, winner, best, source))
        before = best or before
    return found


def best_of(attempt: Attempt, winner: CandidateRef | None) -> Candidate | None:
    """The winner if it is here, else what passed most."""
    with_code = [candidate for candidate in attempt.candidates if candidate.code]
    return max(with_code, key=lambda one: (one.ref == winner, _num_passed(one)), default=None)


def time_line(run: Run) -> list[Bar]:
    whole_s = max(run.wall_s, 0.001)
    bars = [_bar(attempt, candidate, whole_s) for attempt in run.attempts for candidate in attempt.candidates]
    return bars[:SHOWN_BARS]


def difference(before: str, after: str) -> Iterator[Line]:
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=2):
        if not line.startswith(("---", "+++")):
            yield Line({"+": "add", "-": "del", "@": "hunk"}.get(line[:1], "same"), line)


def _attempt(attempt: Attempt, winner: CandidateRef | None, best: Candidate | None, source: Candidate | None) -> ShownAttempt:
    order = sorted(attempt.candidates, key=lambda one: (one is not best, one.ref.index))
    shown = order[:SHOWN_CANDIDATES]
    is_compared = best is not None and source is not None and bool(source.code)
    return ShownAttempt(
        number=attempt.number,
        action=attempt.action,
        reason=attempt.reason,
        temperature=attempt.temperature,
        wall_s=attempt.wall_s,
        num_tokens=attempt.num_tokens,
        candidates=tuple(_candidate(one, winner, is_open=one is best) for one in shown),
        num_more=len(order) - len(shown),
        against=candidate_name(source.ref) if is_compared and source else "",
        to=candidate_name(best.ref) if best else "",
        diff=tuple(difference(source.code, best.code)) if is_compared and source and best else (),
    )


def _candidate(one: Candidate, winner: CandidateRef | None, *, is_open: bool) -> ShownCandidate:
    execution = one.execution
    cases = sorted(execution.cases, key=lambda case: case.outcome == "passed") if execution else []
    return ShownCandidate(
        name=candidate_name(one.ref),
        state=one.state.replace("_", " "),
        mood=MOODS[one.state],
        is_winner=one.ref == winner,
        num_tokens=one.num_tokens,
        counts=f"{execution.tests_passed} of {execution.tests_run} tests" if execution and execution.tests_run else "",
        code=(one.code or one.text)[:SHOWN_CHARS],
        cases=tuple(cases[:SHOWN_CASES]),
        num_more_cases=max(0, len(cases) - SHOWN_CASES),
        words=_words(one),
        output=_output(execution),
        is_open=is_open,
    )


def _words(one: Candidate) -> str:
    if one.duplicate_of is not None:
        return f"The same program as {candidate_name(one.duplicate_of)}, which was tested."
    if one.state == "cancelled":
        return "Ended because another candidate had passed; this says nothing about it."
    if one.state == "no_code":
        return "There was no code in the answer."
    if one.execution is not None and not one.execution.cases:
        return one.execution.error_message or f"It ended as {one.execution.outcome}."
    return ""


def _output(execution: Execution | None) -> str:
    parts = (execution.stdout, execution.stderr) if execution else ()
    return "\n".join(part.strip("\n")[-SHOWN_CHARS:] for part in parts if part.strip())


def _bar(attempt: Attempt, one: Candidate, whole_s: float) -> Bar:
    def at(seconds: float) -> float:
        return round(min(100.0, 100 * seconds / whole_s), 2)

    ended_s = max(one.ended_s, attempt.started_s)
    tested_s = one.tested_s if one.tested_s is not None else ended_s
    return Bar(
        name=candidate_name(one.ref),
        mood=MOODS[one.state],
        state=one.state.replace("_", " "),
        left=at(attempt.started_s),
        width=max(0.4, at(ended_s) - at(attempt.started_s)),
        tested_left=at(ended_s),
        tested_width=max(0.4, at(tested_s) - at(ended_s)) if one.tested_s is not None else 0.0,
        ended_s=ended_s,
        tested_s=one.tested_s,
    )


def _num_passed(one: Candidate) -> int:
    return one.execution.tests_passed if one.execution else 0
