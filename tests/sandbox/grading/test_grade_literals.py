"""Literals of cases: read as Python reads them, whatever way is the faster one."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.errors import BadRequest
from atlas.sandbox.literals import parse

LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.sets(st.integers(), min_size=1, max_size=3)
    ),
    max_leaves=12,
)


@given(LITERALS)
def test_a_literal_is_read_as_python_reads_it(value: Any) -> None:
    assert repr(parse(repr(value), what="x")) == repr(ast.literal_eval(repr(value)))


@given(st.text(st.sampled_from("[]{}(),:\"'\\ \n\t0123456789eE+-._ntrufalsNI/#")))
def test_no_text_is_read_otherwise_than_python_reads_it(source: str) -> None:
    try:
        expected = repr(ast.literal_eval(source))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        expected = ""
    try:
        value = repr(parse(source, what="x"))
    except BadRequest:
        value = ""
    assert value == expected


@pytest.mark.parametrize(
    "source", ["open('x')", "f", "1 +", "[1, 2", "'a' 3", "true", "null", "NaN", "Infinity", "__import__('os')", "1\x00", ""]
)
def test_what_is_no_literal_is_refused_by_name(source: str) -> None:
    with pytest.raises(BadRequest, match="args of case 3 is no Python literal"):
        parse(source, what="args of case 3")


@pytest.mark.parametrize("source", ["[" * 10_000, "-" * 100_000 + "1", "{" * 5000, "1" * 5000, "x" * (5 << 20)])
def test_hostile_literals_do_not_harm_who_reads_them(source: str) -> None:
    with pytest.raises(BadRequest):
        parse(source, what="x")


def test_a_long_list_is_read_quickly() -> None:
    source = repr(list(range(300_000)))
    assert len(parse(source, what="x")) == 300_000
