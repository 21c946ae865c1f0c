from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from atlas.bench.statistics import mcnemar_p, mean_over_tasks, paired, pass_at_k, ratio_over_tasks, wilson


@pytest.mark.parametrize(("n", "c"), [(1, 0), (5, 0), (5, 2), (6, 5), (7, 7)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_that_hold_a_right_sample(n: int, c: int) -> None:
    samples = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        choices = list(itertools.combinations(samples, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_more_than_there_are_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@6 cannot be estimated from 5 samples"):
        pass_at_k(5, 1, 6)


def test_wilson_agrees_with_published_values() -> None:
    """Newcombe 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8, table I, method 3."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_a_rate_on_which_all_tasks_agree_still_has_an_interval() -> None:
    none = ratio_over_tasks([0.0] * 30, [3.0] * 30)
    assert (none.value, none.low, none.kind, none.n) == (0.0, 0.0, "Wilson", 30)
    assert 0.08 < none.high < 0.13
    assert mean_over_tasks([1.0] * 10).low < 0.75


def test_a_rate_of_nothing_is_no_rate() -> None:
    assert ratio_over_tasks([], []).value is None
    assert ratio_over_tasks([0.0, 0.0], [0.0, 0.0])[:4] == (None, 0.0, 1.0, 0)


def test_samples_of_one_task_do_not_make_the_interval_narrower() -> None:
    """Ten seeds that all agree say no more than one."""
    rng = random.Random(3)
    once = [float(rng.random() < 0.5) for _ in range(60)]
    one, ten = ratio_over_tasks(once, [1.0] * 60), ratio_over_tasks([10 * value for value in once], [10.0] * 60)
    assert ten == one


def test_the_interval_holds_the_true_rate_about_as_often_as_it_says() -> None:
    """100 draws of 80 tasks with two correlated seeds; at 95 %, fewer than 85 hits have probability 4e-5."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(100):
        difficulty = rng.beta(1.0, 1.0, size=80)
        solved = (rng.random((2, 80)) < difficulty).sum(axis=0)
        estimate = ratio_over_tasks(solved.tolist(), [2.0] * 80)
        hits += estimate.low <= 0.5 <= estimate.high
    assert 85 <= hits <= 100


def test_mcnemar_is_the_exact_binomial_test_of_what_changed() -> None:
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(5, 5) == 1.0
    assert mcnemar_p(6, 0) == pytest.approx(2 / 64)
    assert mcnemar_p(1, 8) == mcnemar_p(8, 1) == pytest.approx(2 * 10 / 512)
    assert mcnemar_p(900, 300) < 1e-60


def test_a_paired_comparison_sees_what_two_intervals_would_not() -> None:
    """Both solve about half; the second solves all that the first does, and seven tasks more."""
    first = [[float(number % 2)] for number in range(100)]
    second = [[1.0] if number in range(0, 14, 2) else solved for number, solved in enumerate(first)]
    found = paired(first, second)
    assert (found.first, found.second, found.num_gained, found.num_lost) == (0.5, 0.57, 7, 0)
    assert found.difference == pytest.approx(0.07)
    assert 0.0 < found.low < 0.07 < found.high < 0.15
    assert found.p == pytest.approx(2 / 128)
