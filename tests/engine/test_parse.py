from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atlas.engine.parse import OutputParser, Parsed, new_call_id
from atlas.types import ToolCall

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}\n</tool_call>'


def parse(
    *pieces: str, reasoning: bool = True, in_reasoning: bool = False, tools: bool = True
) -> tuple[OutputParser, list[Parsed]]:
    parser = OutputParser(reasoning=reasoning, in_reasoning=in_reasoning, tools=tools)
    parsed = [parser.feed(piece) for piece in pieces]
    parsed.append(parser.finish())
    assert "".join(p.text for p in parsed) == parser.text
    assert "".join(p.reasoning for p in parsed) == parser.reasoning
    assert joined(parsed) == parser.tool_calls
    return parser, parsed


def joined(parsed: list[Parsed]) -> tuple[ToolCall, ...]:
    """The calls as a client puts them together from the deltas."""
    calls: list[ToolCall] = []
    for delta in itertools.chain.from_iterable(p.tool_calls for p in parsed):
        if delta.id is not None:
            assert delta.index == len(calls)
            assert delta.name
            calls.append(ToolCall(id=delta.id, name=delta.name, arguments=delta.arguments))
        else:
            old = calls[delta.index]
            calls[delta.index] = ToolCall(id=old.id, name=old.name, arguments=old.arguments + delta.arguments)
    return tuple(calls)


def outcome(parser: OutputParser) -> tuple[str, str, list[tuple[str, str]]]:
    return parser.text, parser.reasoning, [(call.name, call.arguments) for call in parser.tool_calls]


def test_thinking_is_kept_apart_and_its_newlines_are_trimmed() -> None:
    parser, _ = parse("<think>\nplan.\nmore\n</think>\n\nHello\nworld")
    assert outcome(parser) == ("Hello\nworld", "plan.\nmore", [])


def test_an_empty_think_block_is_no_reasoning() -> None:
    assert outcome(parse("<think>\n\n</think>\n\nHi")[0]) == ("Hi", "", [])


def test_a_prompt_may_have_opened_the_think_block() -> None:
    parser = OutputParser(reasoning=True, in_reasoning=True, tools=False)
    assert parser.is_reasoning
    assert parser.feed("\nhm") == Parsed("", "hm", ())
    assert parser.feed("</thi") == Parsed("", "", ())
    assert parser.is_reasoning
    assert parser.feed("nk>\n\nyes") == Parsed("yes", "", ())
    assert not parser.is_reasoning


def test_a_think_tag_repeated_by_the_model_is_dropped() -> None:
    assert outcome(parse("<think>\nx</think>y", in_reasoning=True)[0]) == ("y", "x", [])


def test_thinking_that_never_ends_stays_thinking() -> None:
    assert outcome(parse("<think>a <tool_call> b </thin")[0]) == ("", "a <tool_call> b </thin", [])


def test_tags_are_text_where_nobody_asked_for_them() -> None:
    text = "<think>x</think>" + CALL
    assert parse(text, reasoning=False, tools=False)[0].text == text


def test_a_call_is_announced_once_its_arguments_begin_and_then_streams() -> None:
    parser = OutputParser(reasoning=False, in_reasoning=False, tools=True)
    assert parser.feed('Sure.\n\n<tool_call>\n{"name": "add", "argu') == Parsed("Sure.", "", ())
    (first,) = parser.feed('ments": {"a"').tool_calls
    assert (first.index, first.name, first.arguments) == (0, "add", '{"a"')
    assert first.id
    assert re.fullmatch(r"call_[0-9A-Za-z]{24}", first.id)
    (second,) = parser.feed(": 1}}\n</tool_call>").tool_calls
    assert (second.index, second.id, second.name, second.arguments) == (0, None, None, ": 1}")
    assert parser.finish() == Parsed("", "", ())
    assert parser.text == "Sure."


def test_several_calls_in_a_row_are_told_apart() -> None:
    parser, _ = parse(f"{CALL}\n{CALL}\nDone.\n")
    arguments = '{"a": 1, "b": [2, {"c": "}"}]}'
    assert outcome(parser) == ("Done.\n", "", [("add", arguments), ("add", arguments)])
    assert len({call.id for call in parser.tool_calls}) == 2


def test_arguments_come_out_exactly_as_generated() -> None:
    raw = '{ "code" : "print(\\"</tool_call>\\\\\\")\\n{" ,"x":1e5, "é": "\\u00e9🙂" }'
    parser, _ = parse('<tool_call>{"name":"run","arguments":' + raw + "}</tool_call>")
    assert outcome(parser) == ("", "", [("run", raw)])


def test_keys_may_come_in_any_order_and_more_of_them() -> None:
    parser, _ = parse('<tool_call>{"id": [1, {"name": "no"}], "arguments": {"name": "x"}, "name": "f"}</tool_call>')
    assert outcome(parser) == ("", "", [("f", '{"name": "x"}')])


def test_a_call_without_arguments_gets_an_empty_object() -> None:
    assert outcome(parse('<tool_call>{"name": "now"}</tool_call>')[0]) == ("", "", [("now", "{}")])
    assert outcome(parse('<tool_call>{"name": "now", "arguments": null}</tool_call>')[0]) == ("", "", [("now", "{}")])


@pytest.mark.parametrize(
    "text",
    [
        "a\n<tool_call>\nnot json\n</tool_call>\nb",
        '<tool_call>{"name": "f", "arguments": "text"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name" "f", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"a": {}, nonsense}</tool_call> and more',
        '<tool_call>{"name": "f", ',
        "<tool_call>",
        "</tool_call>",
        "x <tool_ca",
        "a < b and <tool_calling> is no tag\n",
        "<tool_call>{}",
    ],
)
def test_what_is_no_call_comes_out_as_text_and_nothing_is_lost(text: str) -> None:
    assert outcome(parse(text)[0]) == (text, "", [])


def test_a_broken_call_does_not_hide_the_one_after_it() -> None:
    parser, _ = parse("<tool_call>oops " + CALL)
    assert parser.text == "<tool_call>oops "
    assert [call.name for call in parser.tool_calls] == ["add"]


def test_a_call_cut_off_in_its_arguments_keeps_what_there_is() -> None:
    assert outcome(parse('<tool_call>\n{"name": "f", "arguments": {"a": "tex')[0]) == ("", "", [("f", '{"a": "tex')])


@pytest.mark.parametrize("end", ["", "}", "}\n", "</tool_call>", "\n</tool_call>\n", "}</tool_call>"])
def test_a_missing_brace_or_tag_after_the_arguments_is_forgiven(end: str) -> None:
    parser, _ = parse('<tool_call>{"name": "f", "arguments": {"a": 1}' + end + CALL)
    assert parser.text == ""
    assert outcome(parser)[2][0] == ("f", '{"a": 1}')
    assert len(parser.tool_calls) == 2


def test_garbage_after_the_arguments_is_text() -> None:
    assert outcome(parse('<tool_call>{"name": "f", "arguments": {}, oops}</tool_call>')[0])[0] == ", oops}</tool_call>"


def test_text_that_looks_like_a_tag_is_held_only_while_it_might_be_one() -> None:
    parser = OutputParser(reasoning=True, in_reasoning=False, tools=True)
    assert [parser.feed(piece).text for piece in ("if a ", "<", "t", "x")] == ["if a ", "", "", "<tx"]


def test_call_ids_do_not_repeat() -> None:
    assert len({new_call_id() for _ in range(1000)}) == 1000


TAGS_AND_MARKS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool",
    "\n",
    "\n\n",
    "x",
    "é",
    " ",
    "<",
    "{",
    "}",
    '"',
    "\\",
    ",",
]
PARTS = [CALL, CALL[:-15], '{"name": "f", "arguments": {', '{"name": "f"}', '"name": "g"', '"arguments": {"k": "v"}', ": ", "["]
PIECES = st.sampled_from([*TAGS_AND_MARKS, *PARTS])


@given(
    st.lists(PIECES, max_size=12).map("".join),
    st.lists(st.integers(0, 10_000), max_size=15),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@example("<tool_call>" + "{" * 3, [], True, False, True)
def test_any_cut_gives_the_same_totals(text: str, cuts: list[int], reasoning: bool, in_reasoning: bool, tools: bool) -> None:
    whole, _ = parse(text, reasoning=reasoning, in_reasoning=in_reasoning, tools=tools)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    cut, _ = parse(*pieces, reasoning=reasoning, in_reasoning=in_reasoning, tools=tools)
    single, _ = parse(*text, reasoning=reasoning, in_reasoning=in_reasoning, tools=tools)
    assert outcome(cut) == outcome(whole) == outcome(single)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=4), st.integers(0, 3), st.booleans())
def test_any_well_formed_call_is_read_back(name: str, arguments: dict[str, object], indent: int, ascii_only: bool) -> None:
    raw = json.dumps(arguments, ensure_ascii=ascii_only, indent=indent or None)
    head = json.dumps(name, ensure_ascii=ascii_only)
    parser, _ = parse(*('before\n<tool_call>\n{"name": ' + head + ', "arguments": ' + raw + "}\n</tool_call>"))
    assert outcome(parser) == ("before", "", [(name, raw)])


def test_deep_nesting_is_read_without_recursion() -> None:
    raw = '{"a": ' + "[" * 5000 + "]" * 5000 + "}"
    assert outcome(parse('<tool_call>{"name": "f", "arguments": ' + raw + "}</tool_call>")[0]) == ("", "", [("f", raw)])
