"""Candidates and tests vote where nobody gave tests: CodeT, https://arxiv.org/abs/2207.10397.

Candidates that pass the same tests are one group; a group's score is how many they are times how many tests they pass. Neither
the tests nor the candidates are trusted: a right program and a right test find each other, wrong ones are wrong each in its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from atlas.types import Candidate, CandidateRef

MIN_SHARE_PASSED = 0.5  # of the tests, by the chosen group; chosen


class Vote(NamedTuple):
    """One distinct program: how often it was written, and which tests it passed."""

    candidate: Candidate
    num_written: int
    passed: frozenset[int]


class Agreement(NamedTuple):
    """The group that won.

    Attributes:
        candidates: its programs, in order of arrival.
        num_agreeing: how often they were written, together.
    """

    candidates: tuple[Candidate, ...]
    num_agreeing: int
    num_passed: int
    num_tests: int

    @property
    def is_strong(self) -> bool:
        """Whether it says enough to stop: half of the tests, and more than one candidate wherever there was more than one."""
        return self.num_passed > 0 and self.num_passed >= MIN_SHARE_PASSED * self.num_tests


def votes_of(candidates: Sequence[Candidate]) -> list[Vote]:
    """Candidates that were run, each with its duplicates."""
    copies: dict[CandidateRef, int] = {}
    for candidate in candidates:
        if candidate.duplicate_of is not None:
            copies[candidate.duplicate_of] = copies.get(candidate.duplicate_of, 0) + 1
    run = [candidate for candidate in candidates if candidate.execution is not None and candidate.state != "duplicate"]
    return [Vote(candidate, 1 + copies.get(candidate.ref, 0), _passed(candidate)) for candidate in run]


def agree(votes: Sequence[Vote]) -> Agreement | None:
    """The group with the highest score; of equal ones the first. None if nobody passed anything."""
    groups: dict[frozenset[int], list[Vote]] = {}
    for vote in votes:
        groups.setdefault(vote.passed, []).append(vote)
    scored = {passed: len(passed) * sum(vote.num_written for vote in group) for passed, group in groups.items()}
    best = max(scored, key=lambda passed: scored[passed], default=frozenset[int]())
    if not best:
        return None
    group = groups[best]
    num_tests = max(len(vote.candidate.execution.cases) for vote in votes if vote.candidate.execution)
    return Agreement(tuple(vote.candidate for vote in group), sum(vote.num_written for vote in group), len(best), num_tests)


def _passed(candidate: Candidate) -> frozenset[int]:
    cases = candidate.execution.cases if candidate.execution else ()
    return frozenset(number for number, case in enumerate(cases) if case.outcome == "passed")
