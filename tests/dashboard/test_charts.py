from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.dashboard.charts import bar_chart, level, nice_top, spark_line

AMOUNTS = st.just(0.0) | st.floats(1e-6, 1e12)


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS), min_size=1, max_size=90))
def test_bars_stand_inside_the_drawing_and_on_each_other(values: list[tuple[float, float]]) -> None:
    chart = bar_chart([(str(index), pair) for index, pair in enumerate(values)])
    for bar, pair in zip(chart.bars, values, strict=True):
        assert bar.left >= 0
        assert bar.left + bar.width <= 100.01
        below = 100.0
        for (top, height), value in zip(bar.parts, pair, strict=True):
            assert height == pytest.approx(100 * value / chart.top, abs=0.01)
            assert top + height == pytest.approx(below, abs=0.01)
            assert top >= -0.01
            below = top


@given(st.floats(1e-6, 1e15))
def test_the_scale_ends_at_a_round_number_not_far_above(highest: float) -> None:
    top = nice_top(highest)
    assert highest * (1 - 1e-6) <= top <= highest * 2.5 * (1 + 1e-6)


def test_an_empty_chart_says_so() -> None:
    assert bar_chart([]).is_empty
    assert bar_chart([("a", (0, 0))]).is_empty
    assert not bar_chart([("a", (0, 1))]).is_empty


@given(st.lists(AMOUNTS, max_size=60))
def test_a_spark_line_stays_in_its_box(values: list[float]) -> None:
    points = [tuple(map(float, point.split(","))) for point in spark_line(values).split()]
    assert len(points) == (len(values) if len(values) > 1 else 0)
    assert all(0 <= x <= 100.1 and 0 <= y <= 24 for x, y in points)


@given(AMOUNTS, AMOUNTS)
def test_only_nothing_has_no_shade(value: float, top: float) -> None:
    shade = level(min(value, top), top)
    assert (shade == 0) == (min(value, top) <= 0)
    assert 0 <= shade <= 4
