"""What a closed run has proved. Pure; nothing here can turn an untested answer into a verified one."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.ralph.agreement import Agreement
from atlas.ralph.policy import crashed, num_passed
from atlas.ralph.visible import Suite
from atlas.types import Candidate, OurFailure, Verdict, VerdictStatus

PROVED_WRONG = ("failed", "unconfirmed", "duplicate", "no_code", "repeating")


def verdict_of(
    winner: Candidate | None,
    candidates: Sequence[Candidate],
    suite: Suite | None,
    *,
    agreement: Agreement | None = None,
    is_confirmed: bool = False,
    failure: OurFailure | None = None,
) -> Verdict:
    """The verdict on a winner, or on there being none.

    Args:
        winner: whose code is the answer.
        candidates: all of the run.
        suite: what they were tested with.
        agreement: of candidates and tests, where the model wrote the tests.
        is_confirmed: the winner passed once more in a fresh interpreter.
        failure: what of ours ended the run.
    """
    execution = winner.execution if winner else None
    source = suite.source if suite else "none"
    return Verdict(
        status=_status(winner, candidates, source, agreement, is_confirmed=is_confirmed, failure=failure),
        source=source,
        tests_run=execution.tests_run if execution and source != "none" else 0,
        tests_passed=execution.tests_passed if execution and source != "none" else 0,
        num_held_back=len(suite.held_back) if suite else 0,
        sealed=execution.sealed if execution else False,
        tier=execution.tier if execution else None,
        is_confirmed=is_confirmed,
        num_agreeing=agreement.num_agreeing if agreement else 0,
    )


def _status(
    winner: Candidate | None,
    candidates: Sequence[Candidate],
    source: str,
    agreement: Agreement | None,
    *,
    is_confirmed: bool,
    failure: OurFailure | None,
) -> VerdictStatus:
    if source == "given" and winner is not None and winner.state == "passed" and is_confirmed:
        return "verified"
    if source == "generated" and winner is not None and agreement is not None and agreement.is_strong and is_confirmed:
        return "self_tested"
    if failure is not None or source == "none":
        return "unchecked"
    if source == "generated" and winner is not None and not (crashed(winner) and num_passed(winner) == 0):
        return "unchecked"  # the tests may be what is wrong; only code that breaks on all of them has failed
    judged = [winner] if winner is not None else candidates
    return "failed" if judged and all(candidate.state in PROVED_WRONG for candidate in judged) else "unchecked"
