"""What comes next after a failure, and who wins a vote: pure functions over what happened."""

from __future__ import annotations

from typing import Any

import pytest

from atlas.ralph.agreement import agree, votes_of
from atlas.ralph.feedback import failure_of, trim
from atlas.ralph.policy import always_fresh, always_repair, mixed
from atlas.ralph.repetition import repeats
from atlas.ralph.syntax import fingerprint
from atlas.ralph.visible import Suite
from atlas.types import Attempt, Candidate, CandidateRef, Case, CaseResult, Execution, Failure, Program, Route

ROUTE = Route(max_attempts=6)


def execution(*outcomes: str, outcome: str = "failed", **fields: Any) -> Execution:
    cases = tuple(CaseResult(name=f"f({number})", outcome=each) for number, each in enumerate(outcomes))  # type: ignore[arg-type]
    facts: dict[str, Any] = {
        "cases": cases,
        "tests_run": len(cases),
        "tests_passed": outcomes.count("passed"),
        "outcome": outcome,
    }
    return Execution(tier="native", **(facts | fields))


def attempt(number: int, *executions: Execution | str, action: Any = "fresh", repaired: CandidateRef | None = None) -> Attempt:
    """An attempt with these candidates; a string is the state of one that was not run."""
    candidates = []
    for index, each in enumerate(executions):
        ref = CandidateRef(attempt=number, index=index)
        if isinstance(each, str):
            candidates.append(Candidate(ref=ref, state=each))  # type: ignore[arg-type]
        else:
            candidates.append(Candidate(ref=ref, code="x", state="failed", execution=each, failure=Failure(traceback="t")))
    return Attempt(number=number, action=action, candidates=tuple(candidates), repaired=repaired)


WRONG = execution("passed", "failed")
CRASHED = execution("error", "error")


def test_the_first_attempt_is_fresh() -> None:
    assert mixed([], ROUTE).action == "fresh"


def test_a_crash_is_repaired() -> None:
    step = mixed([attempt(1, WRONG, CRASHED)], ROUTE)
    assert (step.action, step.repaired) == ("repair", CandidateRef(attempt=1, index=1))


def test_a_wrong_result_is_sampled_again_and_then_repaired() -> None:
    first = attempt(1, WRONG)
    assert mixed([first], ROUTE).action == "fresh"
    step = mixed([first, attempt(2, WRONG)], ROUTE)
    assert (step.action, step.repaired) == ("repair", CandidateRef(attempt=2, index=0))


def test_a_lineage_is_repaired_twice_at_most() -> None:
    root = CandidateRef(attempt=1, index=0)
    attempts = [attempt(1, CRASHED), attempt(2, CRASHED, action="repair", repaired=root)]
    assert mixed(attempts, ROUTE).action == "repair"
    attempts.append(attempt(3, CRASHED, action="repair", repaired=CandidateRef(attempt=2, index=0)))
    assert mixed(attempts, ROUTE).action == "fresh"
    twice = [attempt(1, CRASHED), *(attempt(n, "no_code", action="repair", repaired=root) for n in (2, 3)), attempt(4, WRONG)]
    assert mixed(twice, ROUTE).repaired != root


def test_what_brings_nothing_new_is_answered_by_another_plan_and_then_by_the_end() -> None:
    barren = [attempt(1, WRONG), attempt(2, "duplicate", "no_code", "repeating")]
    assert mixed(barren, ROUTE).action == "plan"
    assert mixed([*barren, attempt(3, "duplicate", action="plan")], ROUTE).action == "stop"


@pytest.mark.parametrize("policy", [mixed, always_fresh, always_repair])
def test_no_policy_goes_beyond_the_bound(policy: Any) -> None:
    attempts = [attempt(number, WRONG) for number in range(1, 7)]
    assert policy(attempts, ROUTE).action == "stop"
    assert policy(attempts[:5], ROUTE).action != "stop"


def test_always_repair_takes_the_one_that_passed_most() -> None:
    step = always_repair([attempt(1, CRASHED, WRONG, CRASHED)], ROUTE)
    assert (step.action, step.repaired) == ("repair", CandidateRef(attempt=1, index=1))


def test_what_has_nothing_to_show_cannot_be_repaired() -> None:
    assert always_repair([attempt(1, "no_code")], ROUTE).action == "fresh"


def voting(index: int, *outcomes: str, duplicate_of: int | None = None) -> Candidate:
    ref = CandidateRef(attempt=1, index=index)
    if duplicate_of is not None:
        return Candidate(ref=ref, state="duplicate", duplicate_of=CandidateRef(attempt=1, index=duplicate_of))
    return Candidate(ref=ref, state="failed", execution=execution(*outcomes))


def test_the_largest_group_on_the_most_tests_wins() -> None:
    candidates = [
        voting(0, "passed", "failed", "failed", "failed"),
        voting(1, "passed", "passed", "passed", "failed"),
        voting(2, "passed", "passed", "passed", "failed"),
        voting(3, "failed", "failed", "failed", "passed"),
        voting(4, duplicate_of=3),
        voting(5, duplicate_of=3),
    ]
    agreement = agree(votes_of(candidates))
    assert agreement is not None
    assert [candidate.ref.index for candidate in agreement.candidates] == [1, 2]
    assert (agreement.num_agreeing, agreement.num_passed, agreement.num_tests, agreement.is_strong) == (2, 3, 4, True)


def test_copies_count_as_votes() -> None:
    agreement = agree(votes_of([voting(0, "passed", "failed"), voting(1, "failed", "passed"), voting(2, duplicate_of=1)]))
    assert agreement is not None
    assert agreement.candidates[0].ref.index == 1


def test_nobody_wins_if_nobody_passes_anything() -> None:
    assert agree(votes_of([voting(0, "failed", "error")])) is None
    assert agree([]) is None


def test_few_passed_tests_are_weak() -> None:
    agreement = agree(votes_of([voting(0, "passed", "failed", "failed")]))
    assert agreement is not None
    assert not agreement.is_strong


SUITE = Suite((Program(code="", mode="function", entry_point="f", cases=(Case(),) * 2),), "given", "f")


def test_a_limit_is_named_in_words_a_model_knows() -> None:
    failure = failure_of([execution("timeout", outcome="timeout", limit="wall")], SUITE)
    assert failure is not None
    assert "TimeoutError" in failure.traceback
    assert "f(0)" in failure.traceback


@pytest.mark.parametrize("outcome", ["killed", "tampered", "passed", "completed"])
def test_these_outcomes_are_not_fed_back(outcome: str) -> None:
    assert failure_of([execution(outcome=outcome, error_message="text")], SUITE) is None


def test_a_held_back_test_is_passed_over() -> None:
    held = SUITE._replace(held_back=frozenset({(0, "0")}))
    results = (
        CaseResult(name="f(0)", outcome="failed", expected="1", returned="2"),
        CaseResult(name="f(1)", outcome="error", message="boom"),
    )
    assert failure_of([execution(cases=results)], held) == Failure(traceback="boom")


def test_long_texts_keep_head_and_tail() -> None:
    text = trim("head" + "x" * 5000 + "tail", 400)
    assert len(text) < 420
    assert text.startswith("head")
    assert text.endswith("tail")


@pytest.mark.parametrize(
    ("text", "is_loop"),
    [
        ("a line of thought\n" * 40, True),
        ("0, " * 300, True),
        ("x" * 700, True),
        ("first\n" + "if a:\n    b = 1\n" * 60, True),
        ("a line of thought\n" * 20, False),
        ("".join(f"    line {number} = {number * 7}\n" for number in range(200)), False),
        ("    [0, 0, 0, 0],\n" * 9, False),
        ("", False),
    ],
)
def test_repetition_is_what_repeats_to_the_end(text: str, is_loop: bool) -> None:
    assert repeats("def f():\n" + text) == is_loop
    assert not repeats(text + "and then something else.")


def test_layout_comments_and_docstrings_make_no_other_program() -> None:
    one = fingerprint('def f(x):\n    """Doc."""\n    return (x+1)  # one\n')
    assert one == fingerprint("def f(x): return x + 1")
    assert one != fingerprint("def f(x): return x + 2")
    assert fingerprint("def f(") == fingerprint("def f( ")
