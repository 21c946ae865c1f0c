"""What becomes of a task when its run has closed: brought, failed, or given back for another try."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from atlas.errors import (
    AtlasError,
    BadRequest,
    BudgetExhausted,
    ContextLengthExceeded,
    DeliveryOver,
    Disconnected,
    EngineFailed,
    EngineUnavailable,
    Forbidden,
    LedgerUnavailable,
    LimitsUnavailable,
    ModelNotFound,
    ModelNotLoaded,
    RateLimited,
    SandboxRefused,
    SandboxUnavailable,
    UpstreamFailed,
)
from atlas.ralph.ending import MAX_GIVE_BACK_S, Answer, Return, ending_of, fitted, pause_s
from atlas.ralph.patience import our_failure
from atlas.types import (
    Attempt,
    Candidate,
    CandidateRef,
    Execution,
    Request,
    Route,
    Run,
    Verdict,
)

RUN = Run(request=Request(task="t"), route=Route(), verdict=Verdict(status="verified"), ended_by="passed", sandbox_s=1.5)
CANDIDATE = Candidate(ref=CandidateRef(attempt=1, index=0), text="x", code="x = 1", state="passed")
ATTEMPT = Attempt(number=1, action="fresh", candidates=(CANDIDATE,))


@pytest.mark.parametrize("status", ["verified", "self_tested", "failed", "unchecked"])
def test_a_run_that_nothing_of_ours_ended_is_done_whatever_it_proved(status: str) -> None:
    run = msgspec.convert(msgspec.to_builtins(RUN) | {"verdict": {"status": status}}, Run)
    ending = ending_of(run, 1)
    assert isinstance(ending, Answer)
    assert (ending.outcome, ending.reason, ending.sandbox_s) == ("done", "", 1.5)
    assert msgspec.json.decode(ending.result, type=Run) == run


@pytest.mark.parametrize("kind", [BadRequest, ContextLengthExceeded, Forbidden, ModelNotFound, ModelNotLoaded])
def test_what_another_delivery_would_find_just_as_wrong_fails_the_task(kind: type[AtlasError]) -> None:
    ending = ending_of(replace(RUN, failure=our_failure(kind("that is wrong")), ended_by="failure"), 1)
    assert isinstance(ending, Answer)
    assert (ending.outcome, ending.reason) == ("failed", "that is wrong")


@pytest.mark.parametrize(
    "kind",
    [
        EngineFailed,
        EngineUnavailable,
        UpstreamFailed,
        SandboxUnavailable,
        SandboxRefused,
        LedgerUnavailable,
        LimitsUnavailable,
        Disconnected,
        AtlasError,
    ],
)
def test_what_goes_wrong_with_us_gives_the_task_back_and_counts(kind: type[AtlasError]) -> None:
    ending = ending_of(replace(RUN, failure=our_failure(kind("gone")), ended_by="failure"), 2)
    assert ending == Return(reason=f"{kind.code}: gone", delay_s=pause_s(2))


def test_a_run_whose_delivery_is_over_is_dropped() -> None:
    assert ending_of(replace(RUN, failure=our_failure(DeliveryOver("lost")), ended_by="failure"), 1) is None


def test_an_owner_who_may_not_begin_now_may_later_and_it_does_not_count() -> None:
    run = replace(RUN, ended_by="budget")
    assert ending_of(run, 1, RateLimited("busy", retry_after_s=12.0)) == Return(reason="busy", delay_s=12.0, is_excused=True)
    begun = ending_of(replace(run, attempts=(ATTEMPT,)), 1, RateLimited("busy", retry_after_s=12.0))
    assert isinstance(begun, Answer)
    assert begun.outcome == "done"


def test_without_any_budget_nothing_was_done() -> None:
    ending = ending_of(replace(RUN, ended_by="budget"), 1)
    assert isinstance(ending, Answer)
    assert (ending.outcome, "budget" in ending.reason) == ("failed", True)
    assert BudgetExhausted.status == 429


def test_each_further_delivery_waits_longer_up_to_a_bound() -> None:
    pauses = [pause_s(delivery) for delivery in range(1, 2000)]
    assert pauses == sorted(pauses)
    assert pauses[0] > 0
    assert pauses[-1] == MAX_GIVE_BACK_S


def test_a_run_that_says_too_much_keeps_its_code_and_its_verdict() -> None:
    noisy = replace(CANDIDATE, text="a" * 50_000, execution=Execution(outcome="passed", tier="native", stdout="b" * 50_000))
    run = replace(RUN, attempts=(replace(ATTEMPT, candidates=(noisy,) * 20),), code="x = 1")
    assert msgspec.json.decode(fitted(run), type=Run) == run
    short = fitted(run, limit_bytes=1_000_000)
    assert len(short) < 200_000
    kept = msgspec.json.decode(short, type=Run)
    assert (kept.code, kept.verdict, kept.attempts[0].candidates[3].code) == ("x = 1", RUN.verdict, "x = 1")
    execution = kept.attempts[0].candidates[0].execution
    assert execution is not None
    assert "48000 characters left out" in execution.stdout
