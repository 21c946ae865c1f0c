import numpy as np
import pytest
from almanac.series import rolling_mean, warmest


def test_a_full_window_is_averaged() -> None:
    assert rolling_mean(np.array([1.0, 2.0, 3.0, 4.0]), 2)[1:].tolist() == [1.5, 2.5, 3.5]


def test_a_window_that_is_not_full_yet_averages_what_it_has() -> None:
    assert rolling_mean(np.array([2.0, 4.0, np.nan, 6.0]), 3).tolist() == [2.0, 3.0, 3.0, 5.0]


def test_a_window_of_one_day_changes_nothing() -> None:
    assert rolling_mean(np.array([3.0, 1.0]), 1).tolist() == [3.0, 1.0]


def test_a_window_without_days_is_refused() -> None:
    with pytest.raises(ValueError, match="a window of 0 days"):
        rolling_mean(np.array([1.0]), 0)


def test_the_warmest_day_is_one_that_was_measured() -> None:
    assert warmest(np.array([np.nan, 1.0, 3.0, 2.0])) == 2
