"""Plain values, and what becomes of them on the way."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.sandbox.inside import values
from atlas.sandbox.inside.values import Malformed, NotPlain, Snapshot, decode, encode, encode_content, replace_content

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 9))
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(deque)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.dictionaries(HASHABLE, inner, max_size=3).map(OrderedDict)
        | st.sets(HASHABLE, max_size=3)
        | st.binary(max_size=3).map(bytearray)
    )


PLAIN = st.recursive(SCALARS, containers, max_leaves=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dict", "set", "int", "float", "ref", "tuple", "Decimal", "x"]), inner, max_size=2)
    ),
    max_leaves=12,
)


def sent(value: Any) -> Any:
    """Through JSON, as a frame goes."""
    return json.loads(json.dumps(value))


def kinds(value: Any) -> Any:
    """The type of everything in a value."""
    if isinstance(value, dict):
        return type(value), [(kinds(key), kinds(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return type(value), [kinds(item) for item in value]
    return type(value)


@given(PLAIN)
def test_a_value_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    back = decode(sent(encode(value)))
    assert back == value
    assert kinds(back) == kinds(value)


@given(JSON)
def test_whatever_arrives_is_a_value_or_malformed(encoded: Any) -> None:
    try:
        value = decode(encoded, [])
    except Malformed:
        return
    encode(value, [])  # what came out is plain


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 1 << 70, -(1 << 63), (1 << 63) - 1, "\ud800", "é", ""])
def test_a_value_json_has_trouble_with_survives(value: Any) -> None:
    back = decode(sent(encode([value, [value, value]])))
    assert [repr(item) for item in (back[0], *back[1])] == [repr(value)] * 3


@pytest.mark.parametrize(
    "value", [Counter("aab"), defaultdict(list, {1: [2]}), deque([1, 2]), datetime(2026, 1, 2, 3, tzinfo=UTC), date(2026, 1, 2),
              time(1, 2), timedelta(3), Decimal("1.50"), Fraction(1, 3)]
)  # fmt: skip
def test_common_types_of_the_standard_library_travel(value: Any) -> None:
    back = decode(sent(encode(value)))
    assert (type(back), back) == (type(value), value)


class LyingInt(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize("value", [LyingInt(3), [LyingInt(3)], Colour.RED, object(), len, type, iter([1]), {1: {2: print}}])
def test_what_is_not_plain_does_not_travel(value: Any) -> None:
    with pytest.raises(NotPlain, match="a value of type"):
        encode(value)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_a_value_too_deep_does_not_travel() -> None:
    assert decode(encode(nested(values.DEPTH_LIMIT - 2))) == nested(values.DEPTH_LIMIT - 2)
    with pytest.raises(NotPlain, match="nested deeper than 60"):
        encode(nested(values.DEPTH_LIMIT + 1))


def test_a_value_that_holds_itself_does_not_travel_alone() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(NotPlain, match="nested deeper"):
        encode(value)


@pytest.mark.parametrize(
    "make",
    [lambda: "x" * (5 << 20), lambda: [0] * (3 << 20), lambda: ["x" * 1000] * 5000, lambda: bytes(3 << 20), lambda: doubled(40)],
)
def test_a_value_too_large_does_not_travel(make: Callable[[], Any]) -> None:
    with pytest.raises(NotPlain, match="larger than 4 MB"):
        encode(make())


def doubled(times: int) -> list[Any]:
    """Small, but as a tree it has two to the power of `times` leaves."""
    value: list[Any] = [0]
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "encoded",
    [
        {"float": "1.5"}, {"int": 3}, {"int": "zz"}, {"dict": [[1]]}, {"dict": [[[], 1]]}, {"set": [[1]]},
        {"tuple": 3}, {"Decimal": "x"}, {"Fraction": [1, 0]}, {"nothing": 1}, {}, {"list": [], "set": []},
        {"ref": 0}, {"ref": -1}, {"datetime": "yesterday"}, {"bytes": "0"}, {"complex": [[]]}, {"range": [0,
        1, 0]}, {"timedelta": [1e300]},
    ],
)  # fmt: skip
def test_what_encodes_no_value_is_malformed(encoded: Any) -> None:
    with pytest.raises(Malformed):
        decode(encoded)


def test_a_value_nested_too_deep_is_malformed() -> None:
    with pytest.raises(Malformed, match="deeper"):
        decode({"tuple": nested(80)})


class OtherSide:
    """Both boxes of a call, without the boxes."""

    def __init__(self, *arguments: Any) -> None:
        self.ours: values.Track = []
        self.theirs: values.Track = []
        self.arguments = decode(sent(encode(list(arguments), self.ours)), self.theirs)
        self._before = Snapshot(self.theirs)

    def answer(self, returned: Any) -> Any:
        """What the caller sees of a result, and of what was changed."""
        value = sent(encode(returned, self.theirs))
        changed = [(number, sent(encode_content(self.theirs[number], self.theirs))) for number in self._before.changed()]
        back = decode(value, self.ours)
        contents = [(number, decode(content, self.ours)) for number, content in changed]
        for number, content in contents:
            replace_content(self.ours[number], content)
        return back


def test_a_list_that_comes_back_is_the_list_that_was_sent() -> None:
    given, other = [1, 2], [3]
    call = OtherSide(given, other)
    returned = call.answer([call.arguments[0], [4]])
    assert returned[0] is given
    assert returned[1] == [4]


@pytest.mark.parametrize(
    ("given", "change", "expected"),
    [
        ([3, 1, 2], lambda value: value.sort(), [1, 2, 3]),
        ([1], lambda value: value.append([2]), [1, [2]]),
        ({"a": 1}, lambda value: value.update(a=True), {"a": True}),
        ({1, 2}, lambda value: value.discard(1), {2}),
        (bytearray(b"ab"), lambda value: value.extend(b"c"), bytearray(b"abc")),
        (deque([1, 2]), lambda value: value.rotate(1), deque([2, 1])),
        (Counter("ab"), lambda value: value.clear(), Counter()),
    ],
)
def test_what_is_changed_there_is_changed_here(given: Any, change: Callable[[Any], None], expected: Any) -> None:
    call = OtherSide([given])
    change(call.arguments[0][0])
    call.answer(None)
    assert (type(given), given) == (type(expected), expected)


def test_a_shallow_copy_shares_what_a_deep_one_does_not() -> None:
    rows = [[1], [2]]
    call = OtherSide(rows)
    shallow = call.answer(list(call.arguments[0]))
    shallow[0].append(9)
    assert rows == [[1, 9], [2]]
    deep = OtherSide(rows).answer([list(row) for row in rows])
    deep[1].append(9)
    assert rows == [[1, 9], [2]]


def test_rows_that_are_one_list_stay_one_list() -> None:
    call = OtherSide([[0] * 2] * 3)
    rows = call.arguments[0]
    rows[0][0] = 1
    assert rows == [[1, 0]] * 3


def test_a_list_that_holds_itself_travels_to_the_other_side() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    there = OtherSide(ring).arguments[0]
    assert there[1] is there


@given(st.lists(PLAIN, max_size=3))
def test_arguments_that_are_returned_are_themselves(arguments: list[Any]) -> None:
    call = OtherSide(*arguments)
    for given_argument, returned in zip(arguments, call.answer(list(call.arguments)), strict=True):
        assert returned is given_argument if type(given_argument) is list else returned == given_argument


def test_nothing_is_changed_by_looking() -> None:
    call = OtherSide([1, "a", {"b": [2.5]}], {3})
    assert Snapshot(call.theirs).changed() == []


def test_a_container_does_not_become_one_of_another_type() -> None:
    with pytest.raises(Malformed, match="cannot become"):
        replace_content([1], {2})
