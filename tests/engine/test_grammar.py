from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # no stubs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer
from numpy.typing import NDArray

from atlas.engine.grammar import MAX_DEPTH, MAX_REFERENCES, MAX_WIDTH, Grammars, Matcher
from atlas.engine.runner import Model
from atlas.errors import BadRequest, Unsupported
from atlas.types import Message, Prompt, Tool
from tests import ggufs

ADD = Tool(
    name="add",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
)
NOW = Tool(name="now")
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


CLOSING = frozenset(b'"}],')


class Writer:
    """Writes text or random tokens through a matcher, over the byte-level vocabulary of the tiny models."""

    def __init__(self, grammars: Grammars, tokenizer: LLTokenizer) -> None:
        self.grammars, self.tokenizer = grammars, tokenizer

    def accepts(self, grammar: str | None, text: str) -> bool:
        """Whether `text` is a whole answer."""
        assert grammar is not None
        matcher = self.grammars.start(grammar)
        for token in self.tokenizer.tokenize_str(text, parse_special=True):
            if not self.allowed(matcher)[token]:
                return False
            assert matcher.accept(token)
        return matcher.may_end and bool(self.allowed(matcher)[self.tokenizer.eos_token])

    def allowed(self, matcher: Matcher) -> NDArray[np.bool_]:
        row = np.zeros(self.tokenizer.vocab_size, dtype=np.float32)
        matcher.mask(row)
        return np.isfinite(row)

    def scribble(self, grammar: str, seed: int, *, max_tokens: int = 300) -> str | None:
        """A random answer; None if it is not whole after `max_tokens` tokens. Prefers to end."""
        rng, matcher, tokens = np.random.default_rng(seed), self.grammars.start(grammar), list[int]()
        for _ in range(max_tokens):
            ids = np.flatnonzero(self.allowed(matcher))
            if matcher.error or not ids.size:
                return None
            if self.tokenizer.eos_token in ids:
                return bytes(self.tokenizer.decode_bytes(tokens)).decode()
            closing = [token for token in ids if token in CLOSING]
            token = int(rng.choice(closing if closing and rng.random() < 0.5 else ids))
            assert matcher.accept(token)
            tokens.append(token)
        return None


@pytest.fixture(scope="module")
def writer() -> Iterator[Writer]:
    model = Model(ggufs.tiny_scripted())
    tokenizer = model.vocab.grammar_tokenizer()
    grammars = Grammars(tokenizer)
    yield Writer(grammars, tokenizer)
    grammars.close()
    model.close()


def ask(**fields: Any) -> Prompt:
    return Prompt(messages=(Message(role="user", content="x"),), **fields)


def schema(value: dict[str, Any]) -> Prompt:
    return ask(json_schema=value)


def test_plain_prompts_and_free_tools_need_no_grammar(writer: Writer) -> None:
    assert writer.grammars.compile(ask()) is None
    assert writer.grammars.compile(ask(tools=(ADD,))) is None
    assert writer.grammars.compile(ask(tools=(ADD,), tool_choice="none", parallel_tool_calls=False)) is None


def test_an_empty_schema_is_any_object(writer: Writer) -> None:
    grammar = writer.grammars.compile(schema({}))
    assert writer.accepts(grammar, '{"a": [1, null, {"b": "é"}]}')
    assert writer.accepts(grammar, "\n\n{}")
    assert not writer.accepts(grammar, "[1]")
    assert not writer.accepts(grammar, '{"a": 1')
    assert not writer.accepts(grammar, "{} and more")


def test_a_schema_is_obeyed(writer: Writer) -> None:
    grammar = writer.grammars.compile(schema(ADD.parameters))
    assert writer.accepts(grammar, '{"a": 12}')
    assert not writer.accepts(grammar, '{"a": "12"}')
    assert not writer.accepts(grammar, '{"a": 1, "b": 2}')
    assert not writer.accepts(grammar, "{}")


def test_white_space_cannot_go_on_for_ever(writer: Writer) -> None:
    grammar = writer.grammars.compile(schema(ADD.parameters))
    assert writer.accepts(grammar, '{\n    "a": 1\n}')
    assert not writer.accepts(grammar, "{" + " " * 50 + '"a": 1}')


def test_a_schema_cannot_bring_options_of_its_own(writer: Writer) -> None:
    with pytest.raises(Unsupported):
        writer.grammars.compile(schema({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}))


def test_required_means_one_call_or_more(writer: Writer) -> None:
    grammar = writer.grammars.compile(ask(tools=(ADD, NOW), tool_choice="required"))
    assert writer.accepts(grammar, CALL)
    assert writer.accepts(grammar, "\n\n" + CALL + "\n" + CALL)
    assert writer.accepts(grammar, '<tool_call>\n{"name": "now", "arguments": {"anything": 1}}\n</tool_call>')
    assert not writer.accepts(grammar, "Well, " + CALL)
    assert not writer.accepts(grammar, "")
    assert not writer.accepts(grammar, CALL.replace("add", "sub"))
    assert not writer.accepts(grammar, CALL.replace("1", '"one"'))


def test_a_named_tool_is_called_once(writer: Writer) -> None:
    grammar = writer.grammars.compile(ask(tools=(ADD, NOW), tool_choice="tool:add"))
    assert writer.accepts(grammar, CALL)
    assert not writer.accepts(grammar, CALL + "\n" + CALL)
    assert not writer.accepts(grammar, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')


def test_without_parallel_calls_there_is_at_most_one(writer: Writer) -> None:
    required = writer.grammars.compile(ask(tools=(ADD,), tool_choice="required", parallel_tool_calls=False))
    assert writer.accepts(required, CALL)
    assert not writer.accepts(required, CALL + "\n" + CALL)
    auto = writer.grammars.compile(ask(tools=(ADD,), parallel_tool_calls=False))
    for text in ("", "Just text: é <b>\n", CALL, "First.\n" + CALL):
        assert writer.accepts(auto, text)
    assert not writer.accepts(auto, CALL + "\n" + CALL)


def test_strict_tools_bind_only_the_calls(writer: Writer) -> None:
    strict = Tool(name="add", parameters=ADD.parameters, strict=True)
    grammar = writer.grammars.compile(ask(tools=(strict,)))
    for text in ("Just text.", "First.\n" + CALL, CALL + "\n" + CALL):
        assert writer.accepts(grammar, text)
    assert not writer.accepts(grammar, CALL.replace("1", "1.5"))


def test_a_schema_beside_tools_leaves_the_choice(writer: Writer) -> None:
    grammar = writer.grammars.compile(ask(tools=(ADD,), json_schema={}))
    assert writer.accepts(grammar, CALL)
    assert writer.accepts(grammar, '{"x": 1}')
    assert not writer.accepts(grammar, "text")
    required = writer.grammars.compile(ask(tools=(ADD,), json_schema={}, tool_choice="required"))
    assert not writer.accepts(required, '{"x": 1}')


def test_names_of_tools_are_only_text(writer: Writer) -> None:
    name = 'a"b\\c | {}\n<x> é'
    grammar = writer.grammars.compile(ask(tools=(Tool(name=name),), tool_choice="required"))
    body = json.dumps({"name": name, "arguments": {}}, ensure_ascii=False)
    assert writer.accepts(grammar, f"<tool_call>\n{body}\n</tool_call>")


def test_a_tool_that_is_not_strict_may_have_a_schema_beyond_us(writer: Writer) -> None:
    odd = {"type": "object", "properties": {"a": {"not": {}}}}
    grammar = writer.grammars.compile(ask(tools=(Tool(name="f", parameters=odd),), tool_choice="required"))
    assert writer.accepts(grammar, '<tool_call>\n{"name": "f", "arguments": {"b": 1}}\n</tool_call>')
    with pytest.raises(Unsupported, match=r"parameters of tool 'f': Unimplemented keys: \[\"not\"\]"):
        writer.grammars.compile(ask(tools=(Tool(name="f", parameters=odd, strict=True),)))


def test_a_matcher_knows_its_end_and_what_follows_it(writer: Writer) -> None:
    grammar = writer.grammars.compile(schema({"const": 1}))
    assert grammar is not None
    matcher = writer.grammars.start(grammar)
    assert [matcher.may_end, matcher.accept(ord("1")), matcher.may_end] == [False, True, True]
    assert np.flatnonzero(writer.allowed(matcher)).tolist() == [writer.tokenizer.eos_token]
    assert matcher.accept(writer.tokenizer.eos_token)
    assert matcher.is_done


def test_a_refused_token_leaves_nothing_allowed(writer: Writer) -> None:
    grammar = writer.grammars.compile(schema({}))
    assert grammar is not None
    matcher = writer.grammars.start(grammar)
    assert not matcher.accept(ord("x"))
    assert matcher.error
    assert not writer.allowed(matcher).any()


def test_rows_wider_than_the_vocabulary_are_masked_to_their_end(writer: Writer) -> None:
    grammar = writer.grammars.compile(schema({}))
    assert grammar is not None
    row = np.zeros(writer.tokenizer.vocab_size + 50, dtype=np.float32)
    writer.grammars.start(grammar).mask(row)
    assert np.isneginf(row[writer.tokenizer.vocab_size :]).all()


def test_matchers_of_one_grammar_are_independent(writer: Writer) -> None:
    grammar = writer.grammars.compile(schema({}))
    assert grammar is not None
    first, second = writer.grammars.start(grammar), writer.grammars.start(grammar)
    assert first.accept(ord("{"))
    assert second.accept(ord("\n"))
    assert first.accept(ord("}"))
    assert first.may_end
    assert not second.may_end


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ({"type": "zork"}, BadRequest, "Invalid type: zork"),
        ({"type": "string", "pattern": "(a"}, BadRequest, "unclosed group"),
        ({"type": "string", "pattern": "(?=a)b"}, Unsupported, "look-around"),
        ({"not": {"type": "string"}}, Unsupported, "Unimplemented"),
        ({"type": "string", "format": "zork"}, Unsupported, "Unknown format"),
        ({"$ref": "#/nope"}, BadRequest, "does not exist"),
        ({"$ref": "http://example.com/schema"}, BadRequest, "not present|not fetch"),
        ({"enum": []}, BadRequest, "Unsatisfiable"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, BadRequest, "greater than maximum"),
        ({"required": "x"}, BadRequest, "Expected array"),
        ({"enum": ["x" * 70_000]}, BadRequest, "at most 65536"),
        ({"enum": list(range(MAX_WIDTH + 1))}, BadRequest, "2001 members"),
    ],
)
def test_a_wrong_schema_is_refused_in_words(writer: Writer, value: dict[str, Any], kind: type[BadRequest], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        writer.grammars.compile(schema(value))
    assert caught.value.param == "response_format"
    assert isinstance(caught.value, Unsupported) == (kind is Unsupported)


def test_tools_must_take_objects(writer: Writer) -> None:
    with pytest.raises(BadRequest, match="tool 'f': type must be 'object'"):
        writer.grammars.compile(ask(tools=(Tool(name="f", parameters={"type": "string"}),), tool_choice="required"))


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


@settings(deadline=None, max_examples=60)
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


@settings(deadline=None, max_examples=300)
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


def test_grammars_beyond_the_kept_ones_still_start(writer: Writer) -> None:
    compiled = [writer.grammars.compile(schema({"const": i})) for i in range(40)]
    for i, grammar in itertools.islice(enumerate(compiled), 3):
        assert writer.accepts(grammar, str(i))
