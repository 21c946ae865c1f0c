"""What becomes of a task when its run has closed: the answer is brought, or the task is given back for another try. Pure."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from atlas.errors import (
    AtlasError,
    BadRequest,
    DeliveryOver,
    Forbidden,
    ModelNotFound,
    ModelNotLoaded,
    RateLimited,
)
from atlas.types import Attempt, Candidate, Execution, Run, Value
from atlas.workline import MESSAGE_LIMIT_BYTES, Outcome

GIVE_BACK_S = 5.0  # before the second delivery; twice as long before each further one (chosen)
MAX_GIVE_BACK_S = 300.0
RESULT_LIMIT_BYTES = MESSAGE_LIMIT_BYTES // 2
KEPT_CHARS = 2000  # of each text, where all texts together are too long

# Failures that another delivery would meet again: what is asked for is wrong, or not allowed.
_THEIRS: tuple[type[AtlasError], ...] = (BadRequest, Forbidden, ModelNotFound, ModelNotLoaded)
THEIR_CODES = frozenset(kind.code for base in _THEIRS for kind in (base, *base.__subclasses__()))


class Answer(Value, frozen=True, kw_only=True):
    """The task is closed with this."""

    outcome: Outcome
    reason: str = ""
    result: bytes = b""
    sandbox_s: float = 0.0


class Return(Value, frozen=True, kw_only=True):
    """The task is to be done by somebody else, or later; excused: the task had no part in it, and it does not count."""

    reason: str
    delay_s: float = 0.0
    is_excused: bool = False


Ending = Answer | Return


def ending_of(run: Run, delivery: int, limited: RateLimited | None = None) -> Ending | None:
    """What to do with a closed run; None: its delivery was over before.

    Args:
        run: closed.
        delivery: number of its delivery.
        limited: the limit of the owner that let nothing be generated for now.
    """
    failure = run.failure
    if failure is None:
        has_answers = any(attempt.candidates for attempt in run.attempts)
        if limited is not None and not has_answers:
            return Return(reason=limited.message, delay_s=max(1.0, limited.retry_after_s or 0.0), is_excused=True)
        is_unpaid = run.ended_by == "budget" and not has_answers
        return _answer(run, "failed" if is_unpaid else "done", "the owner's budget is used up" if is_unpaid else "")
    if failure.code == DeliveryOver.code:
        return None
    if failure.code in THEIR_CODES:
        return _answer(run, "failed", failure.message)
    return Return(reason=f"{failure.code}: {failure.message}", delay_s=pause_s(delivery))


def pause_s(delivery: int) -> float:
    """How long a task rests after this many deliveries went wrong."""
    return min(MAX_GIVE_BACK_S, GIVE_BACK_S * 2.0 ** min(delivery - 1, 20))


def fitted(run: Run, limit_bytes: int = RESULT_LIMIT_BYTES) -> bytes:
    """The run as JSON; where that is too much, with the middle of its longest texts left out."""
    body = msgspec.json.encode(run)
    if len(body) <= limit_bytes:
        return body
    return msgspec.json.encode(replace(run, attempts=tuple(shortened(attempt) for attempt in run.attempts)))


def shortened(attempt: Attempt) -> Attempt:
    """The same with head and tail only of what its candidates wrote besides their code, and printed."""
    candidates = tuple(_shortened_candidate(candidate) for candidate in attempt.candidates)
    return replace(attempt, candidates=candidates)


def _answer(run: Run, outcome: Outcome, reason: str) -> Answer:
    return Answer(outcome=outcome, reason=reason, result=fitted(run), sandbox_s=run.sandbox_s)


def _shortened_candidate(candidate: Candidate) -> Candidate:
    execution = candidate.execution and _shortened_execution(candidate.execution)
    return replace(candidate, text=_short(candidate.text), reasoning=_short(candidate.reasoning), execution=execution)


def _shortened_execution(execution: Execution) -> Execution:
    cases = execution.cases[:100]
    return replace(execution, stdout=_short(execution.stdout), stderr=_short(execution.stderr), cases=cases)


def _short(text: str) -> str:
    half = KEPT_CHARS // 2
    return (
        text
        if len(text) <= KEPT_CHARS
        else f"{text[:half]}\n... {len(text) - KEPT_CHARS} characters left out ...\n{text[-half:]}"
    )
