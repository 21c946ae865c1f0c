"""Schemas nobody means well by, and schemas from a generator."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # no stubs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer

from atlas.engine.grammar import Grammars
from atlas.engine.schema_bounds import MAX_DEPTH, MAX_REFERENCES, MAX_WIDTH
from atlas.errors import BadRequest
from tests.engine.writer import Writer, schema, tiny_writer


@pytest.fixture(scope="module")
def writer() -> Iterator[Writer]:
    with tiny_writer() as shared:
        yield shared


def nested(depth: int, wrap: Callable[[Any], Any]) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        value = wrap(value)
    return value


def chain(length: int, link: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    links = {str(i): link({"$ref": f"#/$defs/{i + 1}"}) for i in range(length)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(length): {"type": "string"}}}


def wide(width: int) -> dict[str, Any]:
    names = [f"p{i}" for i in range(width)]
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names[::2]}


HOSTILE: dict[str, dict[str, Any]] = {
    "deep arrays": nested(10_000, lambda v: {"type": "array", "items": v}),
    "deep arrays, just allowed": nested(MAX_DEPTH - 1, lambda v: {"type": "array", "items": v}),
    "deep anyOf": nested(MAX_DEPTH // 2 - 1, lambda v: {"anyOf": [v, {"type": "null"}]}),
    "deep allOf": nested(12, lambda v: {"allOf": [v, v]}),
    "long chain": chain(100_000, lambda v: v),
    "chain, just allowed": chain(MAX_REFERENCES - 2, lambda v: {"type": "object", "properties": {"x": v}}),
    "chain of deep links": chain(20, lambda v: nested(25, lambda w: {"type": "array", "items": w}) | {"anyOf": [v]}),
    "doubling references": chain(60, lambda v: {"allOf": [v, v]}),
    "doubling choices": chain(60, lambda v: {"anyOf": [v, v]}),
    "itself": {"$ref": "#"},
    "anyOf itself": {"anyOf": [{"$ref": "#"}]},
    "anyOf itself or text": {"anyOf": [{"$ref": "#"}, {"type": "string"}]},
    "allOf itself twice": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "wide object": wide(MAX_WIDTH),
    "wide enum": {"enum": [f"value {i}" for i in range(MAX_WIDTH)]},
    "many lengths": {"anyOf": [{"type": "string", "minLength": i} for i in range(1000)]},
    "product of choices": {
        "allOf": [{"anyOf": [{"type": "object", "required": [f"p{i}{j}"]} for i in range(30)]} for j in range(6)]
    },
    "endless array": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "endless string": {"type": "string", "minLength": 10**9},
    "huge number": {"type": "integer", "minimum": 10**400},
    "tiny steps": {"type": "number", "multipleOf": 1e-300},
    "deep constant": {"const": nested(3000, lambda v: [v])},
    "strange keys": {"type": "object", "properties": {"\x00\U0001f600": {"const": "\ud800"}}},
    "not even close": {"properties": 3, "items": "x", "anyOf": {}, "$defs": None},
    "a quote that is cut inside a character": {"required": "x" * 94 + "\u00f8" * 4},
    "patterned keys": {"type": "object", "patternProperties": {f".*a.{{{i}}}": {"type": "integer"} for i in range(100)}},
}
PATTERNS = [
    "(" * 20_000 + ")" * 20_000, "(a?)" * 8000, "(a*b)*" * 5000, "(a+)+$", "(.*.*.*.*.*)x", "a{1000}{1000}",
    "(.{0,1000}){0,1000}x", ".*a.{200}", ".*(a|b).{5000}", r"\p{L}{1000}", r"\d{1,100000}", "(?i)" + r"\w" * 2000,
    "(.*a.*b.*c.*d.*e.*f){10}", "|".join(f"x{i}.*y" for i in range(3000)), "[", "a{999999999999}", "(?P<n>a)(?P=n)", r"\1",
    "^^^$$$", "", "(?#",
]  # fmt: skip
HOSTILE |= {f"pattern {i}": {"type": "string", "pattern": pattern} for i, pattern in enumerate(PATTERNS)}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused_or_works_in_bounded_time(writer: Writer, name: str) -> None:
    started_s = time.monotonic()
    try:
        grammar = writer.grammars.compile(schema(HOSTILE[name]))
    except BadRequest as error:
        assert len(str(error)) < 500  # noqa: PT017
    else:
        assert grammar is not None
        for seed in range(2):
            writer.scribble(grammar, seed, max_tokens=50)
    assert time.monotonic() - started_s < 10


SCALARS: st.SearchStrategy[Any] = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer"},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["a", 1, None]},
        {"const": {"k": [1]}},
        {"type": "string", "pattern": "^[a-f]{1,3}$"},
        {"type": "integer", "minimum": -3, "maximum": 40},
        {"type": "string", "maxLength": 3},
    ]
)
SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.builds(lambda items: {"type": "array", "items": items, "maxItems": 3}, inner)
        | st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(
            lambda members, required: {
                "type": "object", "properties": members, "required": sorted(members)[:required], "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "b", 'q"', "é", "long name"]), inner, max_size=3),
            st.integers(0, 3),
        )
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=60)
@given(SCHEMAS, st.integers(0, 2**32))
def test_whatever_is_written_under_a_schema_validates_against_it(value: dict[str, Any], seed: int) -> None:
    shared = _shared_writer()
    grammar = shared.grammars.compile(schema(value))
    assert grammar is not None
    text = shared.scribble(grammar, seed)
    if text is not None:
        jsonschema.validate(json.loads(text), value)


KEYWORDS = [
    "type",
    "properties",
    "items",
    "anyOf",
    "allOf",
    "oneOf",
    "enum",
    "const",
    "required",
    "minimum",
    "maxLength",
    "pattern",
]
KEYWORDS += [
    "$ref",
    "$defs",
    "additionalProperties",
    "patternProperties",
    "minItems",
    "prefixItems",
    "format",
    "multipleOf",
    "x-guidance",
]
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["#", "object", "#/$defs/a", "date"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYWORDS), JUNK, max_size=5), st.integers(0, 2**32))
def test_random_schemas_never_do_worse_than_a_bad_request(value: dict[str, Any], seed: int) -> None:
    shared = _shared_writer()
    try:
        grammar = shared.grammars.compile(schema(value))
    except BadRequest:
        return
    assert grammar is not None
    shared.scribble(grammar, seed, max_tokens=30)


_writers: list[Writer] = []


def _shared_writer() -> Writer:
    """One for hypothesis, which cannot share fixtures of this scope; over llguidance's own byte vocabulary."""
    if not _writers:
        tokenizer = LLTokenizer("byte")
        _writers.append(Writer(Grammars(tokenizer), tokenizer))
    return _writers[0]


@pytest.mark.parametrize(
    "value",
    [
        {"multipleOf": 123456789},
        {"type": "integer", "multipleOf": 1000000.5},
        {"type": "number", "allOf": [{"multipleOf": 99991}, {"multipleOf": 99989}]},
        {"$defs": {"a": {"multipleOf": 99991}}, "$ref": "#/$defs/a", "multipleOf": 99989},
        {"properties": {"x": {"multipleOf": 10**400}}},
        {"multipleOf": 1e-300},
    ],
    ids=["large", "with a fraction", "together", "by reference", "huge", "tiny"],
)
def test_a_multiple_that_would_take_gigabytes_is_refused_by_name(value: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="multipleOf"):
        _shared_writer().grammars.compile(schema(value))


@pytest.mark.parametrize(
    "value", [{"multipleOf": 0.01}, {"multipleOf": 3600}, {"allOf": [{"multipleOf": 0.25}, {"multipleOf": 60}]}]
)
def test_ordinary_multiples_are_enforced(value: dict[str, Any]) -> None:
    assert _shared_writer().grammars.compile(schema({"type": "number", **value})) is not None
