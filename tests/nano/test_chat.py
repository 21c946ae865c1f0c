"""The chat template, through transformers' renderer and ours."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from atlas.types import Message
from nano.chat import TEMPLATE_TEXT, render, template

TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}


def raw(messages: list[dict[str, Any]], **flags: Any) -> str:
    return template().render(messages=messages, **flags)


def test_a_question_ends_where_the_answer_begins() -> None:
    messages = (Message(role="system", content="S"), Message(role="user", content="Q"))
    asked = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert render(messages) == asked
    assert render(messages, thinking=True) == asked
    assert render(messages, thinking=False) == asked + "<think>\n\n</think>\n\n"


def test_a_conversation_is_rendered_turn_by_turn_without_old_thinking() -> None:
    text = raw(
        [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "A", "reasoning_content": "hidden"},
            {"role": "user", "content": "R"},
        ]
    )
    assert text == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n"


def test_tools_stand_in_the_system_turn_and_results_in_a_user_turn() -> None:
    text = raw(
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": None, "reasoning_content": "why", "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
        ],
        tools=[TOOL],
        add_generation_prompt=True,
    )
    assert text.startswith("<|im_start|>system\nS\n\n# Tools\n")
    assert '<tools>\n{"type": "function", "function": {"name": "add"' in text
    assert "<think>\nwhy\n</think>\n\n<tool_call>\n" in text
    assert text.count('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>') == 2
    assert text.endswith(
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_arguments_may_be_text_or_an_object(arguments: object) -> None:
    call = {"function": {"name": "add", "arguments": arguments}}
    assert '"arguments": {"a": 1}}' in raw([{"role": "assistant", "content": "", "tool_calls": [call]}])


def test_content_that_is_not_text_is_left_out() -> None:
    assert raw([{"role": "user", "content": None}]) == "<|im_start|>user\n<|im_end|>\n"


def test_an_environment_that_marks_json_as_safe_renders_the_rest_unescaped() -> None:
    """Plain jinja, as llama-cpp-python uses it."""
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE_TEXT)
    text = plain.render(messages=[{"role": "assistant", "content": "", "tool_calls": [CALL]}], tools=[TOOL])
    assert "&lt;" not in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in text
