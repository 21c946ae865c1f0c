"""What comes next after an attempt that did not pass: one pure function, to be replaced by a better one.

Repair is no better than another sample where the result is wrong, and much better where the code breaks: of assertion errors 45 %
are repaired, of exceptions 77 % (https://arxiv.org/abs/2604.10508); on the nano model .22 against .27. So a crash is repaired,
a wrong result is answered by fresh samples first, and where samples only repeat themselves, another plan is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from atlas.types import Attempt, Candidate, CandidateRef, Route

MAX_REPAIRS = 2  # of one lineage; most of what repair can do it does in two rounds


class Step(NamedTuple):
    """The next attempt, or the end.

    Attributes:
        repaired: whose failure the prompt shows; for repair only.
        reason: for people.
    """

    action: Literal["fresh", "repair", "plan", "stop"]
    reason: str
    repaired: CandidateRef | None = None


Policy = Callable[[Sequence[Attempt], Route], Step]


def mixed(attempts: Sequence[Attempt], route: Route) -> Step:
    """The default: repair what crashes, sample again what is wrong, plan anew where nothing new comes."""
    if not attempts:
        return Step("fresh", "the first attempt")
    if len(attempts) >= route.max_attempts:
        return Step("stop", f"{route.max_attempts} attempts are the most")
    if brought_nothing_new(attempts[-1]):
        return _after_nothing_new(attempts)
    if (broken := _repairable(attempts, only_crashes=True)) is not None:
        return Step("repair", "the code breaks, and its traceback says where", broken.ref)
    if attempts[-1].action == "fresh" and len(attempts) > 1 and (wrong := _repairable(attempts)):
        return Step("repair", "fresh samples were wrong twice", wrong.ref)
    if len(attempts) > 3 and attempts[-1].action != "plan":
        return Step("plan", "neither samples nor repairs were right")
    return Step("fresh", "the results are wrong: another sample is as good as a repair")


def always_fresh(attempts: Sequence[Attempt], route: Route) -> Step:
    """Never shows a failure: the baseline that others must beat."""
    if len(attempts) >= route.max_attempts:
        return Step("stop", f"{route.max_attempts} attempts are the most")
    return Step("fresh", "another sample" if attempts else "the first attempt")


def always_repair(attempts: Sequence[Attempt], route: Route) -> Step:
    """Repairs the best candidate so far wherever there is something to show."""
    step = always_fresh(attempts, route)
    best = _repairable(attempts, max_repairs=route.max_attempts)
    return step if step.action == "stop" or best is None else Step("repair", "the best so far", best.ref)


def brought_nothing_new(attempt: Attempt) -> bool:
    """Whether every candidate was one that had been tried before, or none at all."""
    return all(candidate.state in ("duplicate", "no_code", "repeating") for candidate in attempt.candidates)


def crashed(candidate: Candidate) -> bool:
    """Whether it broke, rather than returned something wrong."""
    execution = candidate.execution
    if execution is None:
        return False
    if not execution.cases:  # it did not come as far as a test, or there are none
        return execution.outcome in ("error", "failed")
    return any(case.outcome == "error" for case in execution.cases)


def num_passed(candidate: Candidate) -> int:
    return candidate.execution.tests_passed if candidate.execution else 0


def _after_nothing_new(attempts: Sequence[Attempt]) -> Step:
    barren = [attempt for attempt in attempts[-2:] if brought_nothing_new(attempt)]
    if len(barren) == 2 and attempts[-1].action == "plan":
        return Step("stop", "neither samples nor another plan bring anything new")
    return Step("plan", "the samples only repeat what was tried")


def _repairable(attempts: Sequence[Attempt], *, only_crashes: bool = False, max_repairs: int = MAX_REPAIRS) -> Candidate | None:
    """The candidate that passed most, of those with something to show and repairs left; of equal ones the latest."""
    lineage = {attempt.number: attempt.repaired for attempt in attempts}
    found = [candidate for attempt in attempts for candidate in attempt.candidates if candidate.failure is not None]
    if only_crashes:
        found = [candidate for candidate in found if crashed(candidate)]
    found = [candidate for candidate in found if _num_repairs(candidate.ref, lineage) < max_repairs]
    return max(found, key=lambda candidate: (num_passed(candidate), candidate.ref.attempt, candidate.ref.index), default=None)


def _num_repairs(ref: CandidateRef, lineage: dict[int, CandidateRef | None]) -> int:
    """How many attempts have repaired this candidate, what it came from, or what came from that."""
    root = _root(ref, lineage)
    return sum(repaired is not None and _root(repaired, lineage) == root for repaired in lineage.values())


def _root(ref: CandidateRef, lineage: dict[int, CandidateRef | None]) -> CandidateRef:
    parent = lineage.get(ref.attempt)
    return ref if parent is None else _root(parent, lineage)
