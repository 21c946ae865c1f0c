from __future__ import annotations

import pytest
from msgspec.structs import replace

from atlas.bench import Record, compare_records
from atlas.bench.figures import figures_of
from atlas.bench.methods import best_of, greedy, loop
from atlas.bench.values import Cell, Sample
from atlas.errors import OperatorError
from atlas.types import OurFailure
from tests.bench.conftest import settings_of, suite

OURS = OurFailure(code="sandbox_unavailable", message="gone")


def record(task: int, method: str, seed: int, *, passed: bool) -> Record:
    return Record(cell=Cell(task=f"t{task}", method=method, seed=seed), passed=passed)


def test_greedy_is_compared_with_all_seeds_of_what_is_sampled() -> None:
    """Of three seeds the first is right on both tasks, the others on one."""
    once = [record(task, "greedy", 1, passed=task == 0) for task in range(2)]
    thrice = [record(task, "ralph", seed, passed=seed == 1 or task == 0) for task in range(2) for seed in (1, 2, 3)]
    found = compare_records(once, thrice)
    assert found.first == 0.5
    assert found.second == pytest.approx(2 / 3)
    assert (found.n, found.num_gained, found.num_lost) == (2, 1, 0)


def test_only_what_both_have_is_compared_and_failures_of_ours_are_not() -> None:
    first = [record(task, "greedy", 1, passed=True) for task in range(3)]
    second = [record(1, "ralph", 1, passed=False), replace(record(2, "ralph", 1, passed=False), failure=OURS)]
    assert (compare_records(first, second).n, compare_records(first, second).num_lost) == (1, 1)
    with pytest.raises(OperatorError, match="no task in common"):
        compare_records(first, second[1:])


def test_tokens_for_each_right_answer_are_none_where_nothing_is_right() -> None:
    methods = (greedy(), loop(2, 2))
    records = [record(0, "greedy", 1, passed=False), replace(record(0, "ralph", 1, passed=True), num_tokens=90)]
    rows = figures_of(settings_of(suite(1), methods), records)
    assert [row.tokens_per_solved for row in rows] == [None, 90]


def test_a_sample_that_was_never_finished_says_nothing() -> None:
    """Three right of four known ones; the fifth was cut off by a deadline, so that pass@5 cannot be told."""
    samples = tuple(Sample(state="passed", passed=passed) for passed in (True, True, True, False, None))
    [row] = figures_of(settings_of(suite(1), [best_of(5)]), [replace(record(0, "best-of-5", 1, passed=True), samples=samples)])
    assert {k: rate.value for k, rate in row.oracle.items()} == {1: 0.75, 2: 1.0, 3: 1.0}
