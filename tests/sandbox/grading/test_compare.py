"""When a value is the one that was expected."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, OrderedDict, defaultdict
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given

from atlas.sandbox.compare import matches, show
from atlas.sandbox.inside.values import Malformed, encode
from atlas.types import Compare
from tests.sandbox.grading.test_values import JSON, PLAIN


def is_same(returned: Any, expected: Any, how: Compare = "exact", tolerance: float = 1e-6) -> bool:
    return matches(encode(returned), encode(expected), how=how, tolerance=tolerance)


@given(PLAIN)
def test_every_value_is_itself_in_every_way(value: Any) -> None:
    assert is_same(value, value)
    assert is_same(value, value, "json")
    assert is_same(value, value, "approx")


@pytest.mark.parametrize(
    ("returned", "expected", "exact", "as_json", "approx"),
    [
        (1, 1, True, True, True),
        (True, 1, False, False, False),
        (1, 1.0, False, True, True),
        (0.0, -0.0, True, True, True),
        (math.nan, math.nan, True, True, True),
        (math.nan, 0.0, False, False, False),
        (math.inf, -math.inf, False, False, False),
        ((1, 2), [1, 2], False, True, False),
        ([1, 2], [2, 1], False, False, False),
        ([1], [1, 1], False, False, False),
        ("1", 1, False, False, False),
        (b"a", "a", False, False, False),
        (None, False, False, False, False),
        ({1: "a"}, {"1": "a"}, False, True, False),
        ({"a": (1,)}, {"a": [1]}, False, True, False),
        ({1: 1, 2: 2}, {2: 2, 1: 1}, True, True, True),
        ({1, 2, 3}, {3, 2, 1}, True, True, True),
        ({1}, frozenset({1}), False, False, False),
        ({True}, {1}, False, False, False),
        (0.1 + 0.2, 0.3, False, False, True),
        ([0.1 + 0.2, {"a": 3.0000001}], [0.3, {"a": 3}], False, False, True),
        ({0.1 + 0.2, 1.0}, {0.3, 1.0}, False, False, True),
        (1 + 1e-9j, 1 + 0j, False, False, True),
        (10**400, 10**400 + 1, False, False, False),
        (10**400, 1.5, False, False, False),
        (Counter("aa"), {"a": 2}, True, True, True),
        (OrderedDict(a=1), {"a": 1}, True, True, True),
        (defaultdict(int, {"a": 1}), {"a": 1.0}, False, True, True),
        (Fraction(1, 2), 0.5, False, False, False),
    ],
)
def test_types_count_unless_it_is_said_otherwise(returned: Any, expected: Any, exact: bool, as_json: bool, approx: bool) -> None:
    assert (is_same(returned, expected), is_same(returned, expected, "json"), is_same(returned, expected, "approx")) == (
        exact,
        as_json,
        approx,
    )


def test_the_tolerance_is_relative_or_absolute() -> None:
    assert is_same(1_000_100, 1_000_000, "approx", 1e-3)
    assert is_same(0.0005, 0, "approx", 1e-3)
    assert not is_same(1.01, 1, "approx", 1e-3)


@given(JSON, PLAIN)
def test_whatever_a_box_sends_is_compared_or_malformed(sent: Any, expected: Any) -> None:
    for how in ("exact", "json", "approx"):
        try:
            is_right = matches(sent, encode(expected), how=how, tolerance=1e-6)
        except Malformed:
            continue
        assert isinstance(is_right, bool)


@pytest.mark.parametrize(
    "sent", [{"float": "1"}, {"int": 5}, {"int": []}, {"set": 1}, {"a": 1, "b": 2}, {"complex": ["x", {"y": 1}]}, {"dict": [1]}]
)
@pytest.mark.parametrize("how", ["exact", "json", "approx"])
def test_what_encodes_no_value_equals_nothing(sent: Any, how: Compare) -> None:
    with pytest.raises(Malformed):
        matches(sent, 1, how=how, tolerance=1.0)


def test_numbers_with_one_hash_do_not_stop_the_comparison() -> None:
    """A set of these takes minutes to build."""
    hostile = {"set": [number * ((1 << 61) - 1) for number in range(1, 100_000)]}
    started_s = time.monotonic()
    for how in ("exact", "json", "approx"):
        assert not matches(hostile, encode({1}), how=how, tolerance=1e-6)
    assert time.monotonic() - started_s < 10


@pytest.mark.parametrize(
    "value",
    [1, "a'b", None, 1.5, [1, (2,), ()], {"a": {1}}, set(), frozenset({1}), b"\x00a", {"a": [True]}, (1, 2), -(1 << 70), "é\n"],
)
def test_a_value_is_shown_as_python_writes_it(value: Any) -> None:
    assert show(encode(value), 1000) == repr(value)


def test_a_long_value_is_cut_off() -> None:
    assert show(encode(list(range(100_000))), 20) == "[0, 1, 2, 3, 4, 5, 6..."


@given(JSON)
def test_whatever_a_box_sends_can_be_shown(sent: Any) -> None:
    assert isinstance(show(json.loads(json.dumps(sent)), 100), str)
