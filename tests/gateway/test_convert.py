"""What an engine gets, where the scripted one would refuse it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from atlas.errors import BadRequest
from atlas.gateway import anthropic_wire, text_wire, wire
from atlas.gateway.anthropic_convert import messages_prompt
from atlas.gateway.completions import completion_prompts
from atlas.gateway.convert import chat_prompt, refused_fields
from atlas.types import Capabilities, Prompt

CAN = Capabilities(model="m", architecture="x", context_tokens=100, json_schema=True, tools=True)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**body: object) -> Prompt:
    return chat_prompt(msgspec.convert(BODY | body, wire.ChatCompletionRequest), CAN, owner="alice")


def messages(**body: object) -> Prompt:
    request = msgspec.convert(BODY | {"max_tokens": 9} | body, anthropic_wire.MessagesRequest)
    return messages_prompt(request, CAN, owner="alice")


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {}),
        ({"type": "json_object", "schema": SCHEMA}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}, {}),
    ],
)
def test_response_formats_become_a_schema(response_format: object, expected: object) -> None:
    assert chat(response_format=response_format).json_schema == expected


def test_llama_servers_short_form_of_a_schema_is_honoured() -> None:
    assert chat(json_schema=SCHEMA).json_schema == SCHEMA
    assert chat(json_schema=SCHEMA, response_format={"type": "text"}).json_schema == SCHEMA
    with pytest.raises(BadRequest, match="send one"):
        chat(json_schema=SCHEMA, response_format={"type": "json_object"})


def test_grammars_and_schemas_reach_the_engine_from_chats_and_completions() -> None:
    request = msgspec.convert({"model": "m", "prompt": "x", "grammar": "root ::= x"}, text_wire.CompletionRequest)
    [prompt] = completion_prompts(request, CAN, owner="alice")
    assert (prompt.text, prompt.grammar, chat(grammar="root ::= x").grammar) == ("x", "root ::= x", "root ::= x")
    request = msgspec.convert({"model": "m", "prompt": "x", "json_schema": SCHEMA, "grammar": ""}, text_wire.CompletionRequest)
    [prompt] = completion_prompts(request, CAN, owner="alice")
    assert (prompt.json_schema, prompt.grammar) == (SCHEMA, None)


def test_anthropics_output_format_becomes_a_schema() -> None:
    assert messages(output_config={"format": {"type": "json_schema", "schema": SCHEMA}}).json_schema == SCHEMA


def test_a_model_that_never_thinks_is_not_asked_to() -> None:
    assert chat(reasoning_effort="high", thinking_budget_tokens=5).thinking is None
    assert messages(thinking={"type": "enabled", "budget_tokens": 1024}).thinking_budget_tokens is None


def test_a_tools_schema_and_strictness_arrive_as_sent() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": SCHEMA, "strict": True, "description": "Add."}}
    [found] = chat(tools=[tool]).tools
    assert (found.name, found.description, found.parameters, found.strict) == ("add", "Add.", SCHEMA, True)


def test_a_mid_conversation_system_message_stays_where_it_is() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}]
    assert [message.role for message in messages(messages=turns).messages] == ["user", "system", "user"]


def test_refused_fields_are_found_in_the_wire() -> None:
    assert {"functions", "audio", "guided_grammar", "guided_json"} <= set(refused_fields(wire.ChatCompletionRequest))
    assert "messages" not in refused_fields(wire.ChatCompletionRequest)


def test_a_schema_left_out_is_refused() -> None:
    with pytest.raises(BadRequest):
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x"}})
