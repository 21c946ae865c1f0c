from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from atlas.engine.schema_bounds import MAX_WIDTH
from atlas.errors import BadRequest, Unsupported
from atlas.types import Tool
from tests.engine.writer import Writer, ask, schema, tiny_writer

ADD = Tool(
    name="add",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
)
NOW = Tool(name="now")
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture(scope="module")
def writer() -> Iterator[Writer]:
    with tiny_writer() as shared:
        yield shared


def test_plain_prompts_and_free_tools_need_no_grammar(writer: Writer) -> None:
    assert writer.grammars.compile(ask()) is None
    assert writer.grammars.compile(ask(tools=(ADD,))) is None
    assert writer.grammars.compile(ask(tools=(ADD,), tool_choice="none", parallel_tool_calls=False)) is None


def test_free_tools_bind_the_calls_alone_one_after_the_other(writer: Writer) -> None:
    grammar = writer.grammars.calls(ask(tools=(ADD, NOW)))
    assert grammar is not None
    matcher = writer.grammars.start_calls(grammar)
    text = "First, " + CALL + " then, <b>oddly</b>, " + CALL.replace("1", "-23") + "\ndone"
    bound = []
    for token in writer.tokenizer.tokenize_str(text, parse_special=True):
        assert not matcher.binds or writer.allowed(matcher)[token]
        assert matcher.accept(token)
        bound.append(matcher.binds)
    assert (bound[0], bound[-1]) == (False, False)
    assert [key for key, _ in itertools.groupby(bound)] == [False, True, False, True, False]


@pytest.mark.parametrize(
    "wrong",
    [CALL.replace("add", "sub"), CALL.replace("1", '"one"'), CALL.replace("}}", "}"), CALL[: CALL.index("1")], "<tool_call>{"],
)
def test_a_free_call_that_is_wrong_cannot_be_written_nor_left_unfinished(writer: Writer, wrong: str) -> None:
    grammar = writer.grammars.calls(ask(tools=(ADD, NOW)))
    assert grammar is not None
    matcher = writer.grammars.start_calls(grammar)
    allowed = True
    for token in [*writer.tokenizer.tokenize_str(wrong, parse_special=True), writer.tokenizer.eos_token]:
        allowed = allowed and (not matcher.binds or bool(writer.allowed(matcher)[token]))
        if not allowed:
            break
        matcher.accept(token)
    assert not allowed


def test_tools_that_no_call_can_be_held_to_refuse_nothing(writer: Writer) -> None:
    assert writer.grammars.calls(ask()) is None
    assert writer.grammars.calls(ask(tools=(ADD,), tool_choice="none")) is None
    assert writer.grammars.calls(ask(tools=(Tool(name="f", parameters={"type": "string"}),))) is None
    many = tuple(Tool(name=f"tool_{number}", parameters={"title": "x" * 3000}) for number in range(100))
    assert writer.grammars.calls(ask(tools=many)) is None
    odd = {"properties": {"a": {"type": "array", "uniqueItems": True}}}
    assert writer.grammars.calls(ask(tools=(Tool(name="f", parameters=odd),))) is not None


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


def test_grammars_beyond_the_kept_ones_still_start(writer: Writer) -> None:
    compiled = [writer.grammars.compile(schema({"const": i})) for i in range(40)]
    for i, grammar in itertools.islice(enumerate(compiled), 3):
        assert writer.accepts(grammar, str(i))
