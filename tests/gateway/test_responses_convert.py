"""What requests to /v1/responses mean to the engine; what comes back is in test_responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from openai import OpenAI

from atlas.engine import Group, ScriptedEngine
from atlas.types import Message, Prompt, ToolCall
from tests.gateway.conftest import MODEL, Running, Scripted, deps_of, serving
from tests.gateway.test_responses import ADD, PATCH, REPLY, post


class SchemaEngine(ScriptedEngine):
    """Takes JSON schemas, notes them, and says its script all the same."""

    def __init__(self, *replies: str) -> None:
        super().__init__(replies, model=MODEL)
        self.schemas: list[object] = []
        self.capabilities = msgspec.structs.replace(self.capabilities, json_schema=True)

    async def submit(self, prompt: Prompt) -> Group:
        self.schemas.append(prompt.json_schema)
        return await super().submit(msgspec.structs.replace(prompt, json_schema=None))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine([REPLY], model=MODEL))) as running:
        yield running


@pytest.fixture
def client(server: Running) -> OpenAI:
    return server.openai()


def prompt_of(server: Running, **body: object) -> Prompt:
    reply = post(server, **body)
    assert reply.status_code == 200, reply.text
    return server.engine.prompts[-1]


def test_a_tool_round_trip_reaches_the_engine(client: OpenAI, server: Running) -> None:
    """What the answer said is sent back as it came, as agents do."""
    first = client.responses.create(model=MODEL, input="add", tools=[ADD, PATCH])
    call, custom = first.output[2:]
    assert call.type == "function_call"
    assert custom.type == "custom_tool_call"
    items: Any = [
        {"role": "user", "content": "add"},
        *[item.model_dump(exclude_none=True) for item in first.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "2"},
        {"type": "custom_tool_call_output", "call_id": custom.call_id, "output": [{"type": "input_text", "text": "done"}]},
    ]
    client.responses.create(model=MODEL, input=items, tools=[ADD, PATCH])
    assert server.engine.prompts[-1].messages == (
        Message(role="user", content="add"),
        Message(
            role="assistant",
            content="I will add.",
            reasoning="Let me see.",
            tool_calls=(
                ToolCall(id=call.call_id, name="add", arguments=call.arguments),
                ToolCall(id=custom.call_id, name="apply_patch", arguments='{"input":"*** Begin\\n+\\"x\\""}'),
            ),
        ),
        Message(role="tool", tool_call_id=call.call_id, content="2"),
        Message(role="tool", tool_call_id=custom.call_id, content="done"),
    )


def test_instructions_and_what_developers_say_first_are_one_system_message(server: Running) -> None:
    prompt = prompt_of(
        server,
        instructions="Be brief.",
        input=[
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "No tests."}]},
            {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "three", "annotations": []}]},
            {"role": "developer", "content": "Go on."},
        ],
    )
    assert prompt.messages == (
        Message(role="system", content="Be brief.\n\nNo tests."),
        Message(role="user", content="one\ntwo"),
        Message(role="assistant", content="three"),
        Message(role="system", content="Go on."),
    )


def test_items_we_do_not_know_and_encrypted_thoughts_are_passed_over(server: Running) -> None:
    prompt = prompt_of(
        server,
        input=[
            {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": 5},
            {"role": "user", "content": "hi"},
            {"type": "reasoning", "summary": [], "encrypted_content": "xyz"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "content": None},
            {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
            {"type": "local_shell_call_output", "call_id": "c9", "output": "x"},
            {"type": "function_call_output", "call_id": "c1", "output": "2"},
        ],
    )
    call = ToolCall(id="c1", name="add", arguments="{}")
    assert prompt.messages == (
        Message(role="user", content="hi"),
        Message(role="assistant", reasoning="hm", tool_calls=(call,)),
        Message(role="tool", tool_call_id="c1", content="2"),
    )


def test_tools_that_openai_runs_are_passed_over(server: Running) -> None:
    others: list[object] = [
        {"type": "web_search"},
        {"type": "local_shell"},
        {"type": "mcp", "server_label": "x", "name": 5},
        {"type": "namespace", "name": "n", "tools": [ADD]},
        {"type": "tool of tomorrow"},
        {},
    ]
    reply = post(server, tools=[*others, ADD])
    assert reply.status_code == 200, reply.text
    assert reply.json()["tools"] == [ADD]
    assert [tool.name for tool in server.engine.prompts[-1].tools] == ["add"]


def test_a_custom_tool_is_a_function_of_one_text(server: Running) -> None:
    [tool] = prompt_of(server, tools=[PATCH]).tools
    assert list(tool.parameters["properties"]) == ["input"]
    assert tool.description == "Edit files.\n\n`input` follows this lark grammar:\nstart: /.+/"


def test_a_custom_call_that_is_no_object_is_handed_on_as_text(scripted: Scripted) -> None:
    server = scripted(['<tool_call>\n{"name": "apply_patch", "arguments": {"text": "x"}}\n</tool_call>'])
    [call] = post(server, tools=[PATCH]).json()["output"]
    assert json.loads(call["input"]) == {"text": "x"}


@pytest.mark.parametrize(
    ("choice", "expected", "names"),
    [
        (None, "auto", ["add", "apply_patch"]),
        ("none", "none", ["add", "apply_patch"]),
        ("required", "required", ["add", "apply_patch"]),
        ({"type": "function", "name": "add"}, "tool:add", ["add"]),
        ({"type": "custom", "name": "apply_patch"}, "tool:apply_patch", ["apply_patch"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}, {"type": "web_search"}]},
            "required",
            ["add"],
        ),
    ],
)
def test_tool_choice_reaches_the_engine(server: Running, choice: object, expected: str, names: list[str]) -> None:
    prompt = prompt_of(server, tools=[ADD, PATCH], tool_choice=choice, parallel_tool_calls=False)
    assert prompt.tool_choice == expected
    assert [tool.name for tool in prompt.tools] == names
    assert not prompt.parallel_tool_calls


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        (None, (None, None)),
        ({"summary": "auto"}, (None, None)),
        ({"effort": "none"}, (False, None)),
        ({"effort": "low"}, (True, 1024)),
        ({"effort": "high"}, (True, None)),
    ],
)
def test_effort_decides_thinking_as_in_chat(server: Running, reasoning: object, expected: tuple[object, object]) -> None:
    prompt = prompt_of(server, reasoning=reasoning)
    assert (prompt.thinking, prompt.thinking_budget_tokens) == expected


def test_sampling_and_bounds_reach_the_engine_and_the_rest_is_ignored(server: Running) -> None:
    prompt = prompt_of(
        server,
        temperature=0.1,
        top_p=0.5,
        max_output_tokens=50,
        store=True,
        include=["reasoning.encrypted_content"],
        metadata={"a": "b"},
        prompt_cache_key="k",
        service_tier="auto",
        background=False,
        previous_response_id=None,
        client_metadata={"x": 1},
    )
    assert (prompt.sampling[0].temperature, prompt.sampling[0].top_p, prompt.max_tokens) == (0.1, 0.5, 50)
    assert prompt.owner == server.deps.store.accounts.owner().id


def test_structured_output_reaches_the_engine() -> None:
    class Point(msgspec.Struct):
        x: int

    schema = msgspec.json.schema(Point)
    engine = SchemaEngine('{"x": 1}')
    with serving(deps_of(engine)) as server:
        wanted: list[Any] = [
            {"type": "json_schema", "name": "point", "schema": schema, "strict": True},
            {"type": "json_object"},
            {"type": "text"},
        ]
        for given in wanted:
            reply = server.openai().responses.create(model=MODEL, input="hi", text={"format": given, "verbosity": "low"})
            assert json.loads(reply.output_text) == {"x": 1}
            assert reply.text is not None
            assert reply.text.to_dict()["format"] == given
        assert engine.schemas == [schema, {}, None]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "item_reference"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "compaction"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input_image"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input_file"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "`text`"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}]}, "input_image"),
        ({"input": [{"role": "robot", "content": "x"}]}, "robot"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input"),
        ({"input": [{"type": 5}], "instructions": "Be brief."}, "none of its items"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "custom", "name": 5}]}, "tools[0]"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "required"),
        ({"tool_choice": "maybe"}, "maybe"),
        ({"tool_choice": {"type": "function", "name": "gone"}}, "gone"),
        ({"tool_choice": {"type": "web_search"}}, "web_search"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"reasoning": {"effort": "heroic"}}, "heroic"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_named(server: Running, body: dict[str, object], word: str) -> None:
    reply = post(server, **body)
    assert reply.status_code == 400, reply.text
    assert word in reply.json()["error"]["message"]
