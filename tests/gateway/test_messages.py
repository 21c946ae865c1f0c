from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from anthropic import Anthropic, BadRequestError, NotFoundError

from atlas.engine import ScriptedEngine
from atlas.settings import AnthropicSettings
from atlas.types import Message, Prompt
from tests.gateway.conftest import MODEL, Running, Scripted, deps_of, quick_pings, serving, wait_for

BODY: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
ADD: Any = {"name": "add", "description": "Add.", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    replies = ["<think>Let me see.</think>I will add.\n" + CALL + "\n" + CALL]
    with serving(deps_of(ScriptedEngine(replies, model=MODEL))) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Anthropic:
    return server.anthropic()


def post(server: Running, **body: object) -> httpx.Response:
    with server.http() as http:
        return http.post("/v1/messages", json=BODY | body)


def prompt_of(server: Running, **body: object) -> Prompt:
    reply = post(server, **body)
    assert reply.status_code == 200, reply.text
    return server.engine.prompts[-1]


def events_of(server: Running, **body: object) -> list[dict[str, Any]]:
    """The events of a stream; each must carry its name twice."""
    events = []
    for block in post(server, stream=True, **body).text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == "event: " + events[-1]["type"]
    return events


def test_an_answer_has_blocks_stop_reason_and_usage(client: Anthropic) -> None:
    reply = client.messages.create(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": "hi"}], tools=[ADD], thinking=THINKING
    )
    assert [block.type for block in reply.content] == ["thinking", "text", "tool_use", "tool_use"]
    thinking, _, first, second = [block.model_dump() for block in reply.content]
    assert thinking["thinking"] == "Let me see."
    assert first["input"] == second["input"] == {"a": 1}
    assert first["id"] != second["id"]
    assert reply.stop_reason == "tool_use"
    assert reply.usage.input_tokens > 0
    assert reply.usage.output_tokens > 0
    assert reply.role == "assistant"


def test_the_sdk_builds_the_same_message_from_a_stream(client: Anthropic) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": "hi"}], tools=[ADD], thinking=THINKING
    ) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert final.content[2].model_dump()["input"] == {"a": 1}
    assert final.stop_reason == "tool_use"
    assert final.usage.output_tokens > 0


def test_events_come_in_anthropics_order_with_block_indices(server: Running) -> None:
    events = events_of(server, tools=[ADD], thinking=THINKING)
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    open_block = None
    kinds: list[str] = []
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert open_block is None
            open_block = event["index"]
            assert open_block == len(kinds)
            kinds.append(event["content_block"]["type"])
        elif event["type"] == "content_block_stop":
            assert event["index"] == open_block
            open_block = None
        else:
            assert event["type"] == "content_block_delta"
            assert event["index"] == open_block
    assert open_block is None
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] > 0


def test_a_thinking_block_ends_with_its_signature(server: Running) -> None:
    deltas = [event["delta"]["type"] for event in events_of(server, thinking=THINKING) if event["type"] == "content_block_delta"]
    assert deltas[deltas.index("text_delta") - 1] == "signature_delta"


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        (None, (False, None)),
        ({"type": "disabled"}, (False, None)),
        (THINKING, (True, 1024)),
        ({"type": "adaptive"}, (None, None)),
    ],
)
def test_thinking_is_off_unless_asked_for(server: Running, thinking: object, expected: tuple[object, object]) -> None:
    prompt = prompt_of(server, thinking=thinking)
    assert (prompt.thinking, prompt.thinking_budget_tokens) == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "add"}, "tool:add"),
    ],
)
def test_tool_choice_reaches_the_engine(server: Running, choice: dict[str, object], expected: str) -> None:
    prompt = prompt_of(server, tools=[ADD], tool_choice=choice | {"disable_parallel_tool_use": True})
    assert prompt.tool_choice == expected
    assert not prompt.parallel_tool_calls
    assert prompt.tools[0].parameters == ADD["input_schema"]


def test_a_conversation_with_tool_results_reaches_the_engine(server: Running) -> None:
    prompt = prompt_of(
        server,
        tools=[ADD],
        messages=[
            {"role": "user", "content": "add"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "redacted_thinking", "data": "xyz"},
                    {"type": "text", "text": "I will"},
                    {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
                    {"type": "tool_use", "id": "t2", "name": "add", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "2"}, {"type": "text", "text": "3"}],
                    },
                    {"type": "tool_result", "tool_use_id": "t2", "content": "no a", "is_error": True},
                    {"type": "text", "text": "go on", "cache_control": {"type": "ephemeral"}},
                ],
            },
        ],
    )
    assistant = prompt.messages[1]
    assert (assistant.reasoning, assistant.content) == ("hm", "I will")
    assert [(call.id, call.arguments) for call in assistant.tool_calls] == [("t1", '{"a":1}'), ("t2", "{}")]
    assert prompt.messages[2:] == (
        Message(role="tool", tool_call_id="t1", content="2\n3"),
        Message(role="tool", tool_call_id="t2", content="Error: no a"),
        Message(role="user", content="go on"),
    )


@pytest.mark.parametrize(
    "system",
    [
        "x-anthropic-billing-header: cc_version=1; cch=abc\nBe brief.",
        [{"type": "text", "text": "x-anthropic-billing-header: cc_version=1;"}, {"type": "text", "text": "Be brief."}],
    ],
)
def test_the_billing_line_is_stripped_from_the_system_prompt(server: Running, system: object) -> None:
    assert prompt_of(server, system=system).messages[0] == Message(role="system", content="Be brief.")


def test_claude_names_mean_the_loaded_model(client: Anthropic) -> None:
    reply = client.messages.create(model="claude-some-model", max_tokens=100, messages=[{"role": "user", "content": "hi"}])
    assert reply.model == MODEL


def test_claude_names_are_unknown_when_the_map_is_off(scripted: Scripted) -> None:
    server = scripted(anthropic=AnthropicSettings(model_map=False))
    with pytest.raises(NotFoundError) as caught:
        server.anthropic().messages.create(model="claude-x", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
    assert MODEL in str(caught.value)


def test_sampling_and_stop_reach_the_engine_and_max_tokens_is_told(scripted: Scripted) -> None:
    server = scripted(["one two three four"])
    reply = post(server, max_tokens=2, temperature=0.1, top_p=0.5, top_k=3, stop_sequences=["x"], metadata={"user_id": "u"})
    assert reply.json()["stop_reason"] == "max_tokens"
    prompt = server.engine.prompts[-1]
    assert (prompt.sampling[0].temperature, prompt.sampling[0].top_p, prompt.sampling[0].top_k) == (0.1, 0.5, 3)
    assert prompt.stop == ("x",)


def test_a_stop_sequence_is_named(scripted: Scripted) -> None:
    server = scripted(["one two three four"])
    reply = post(server, stop_sequences=["never", " three"]).json()
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", " three")
    assert reply["content"][0]["text"] == "one two"
    delta = events_of(server, stop_sequences=["never", " three"])[-2]["delta"]
    assert delta == {"stop_reason": "stop_sequence", "stop_sequence": " three"}


def test_tokens_are_counted_without_generating(client: Anthropic, server: Running) -> None:
    before = len(server.engine.prompts)
    counted = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    assert len(server.engine.prompts) == before
    reply = client.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "hi"}])
    assert counted.input_tokens == reply.usage.input_tokens


def test_errors_are_anthropics_and_carry_the_request_id(client: Anthropic, server: Running) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.messages.create(model=MODEL, max_tokens=9, messages=[])
    assert caught.value.request_id
    reply = post(server, max_tokens=0)
    assert reply.status_code == 400
    body = reply.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert "max_tokens" in body["error"]["message"]
    assert body["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    unauthorized = httpx.post(server.url + "/v1/messages", json=BODY)
    assert unauthorized.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "document"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}]}
                ]
            },
            "image",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"messages": [{"role": "assistant", "content": "{"}]}, "continue"),
        ({"messages": [{"role": "user", "content": []}]}, "empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tools": [{"name": "add"}]}, "input_schema"),
        ({"tool_choice": {"type": "tool"}}, "name"),
        ({"tool_choice": {"type": "tool", "name": "gone"}}, "gone"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"max_tokens": None}, "max_tokens"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_config"),
    ],
)
def test_what_cannot_be_honoured_is_named(server: Running, body: dict[str, object], word: str) -> None:
    reply = post(server, **body)
    assert reply.status_code == 400, reply.text
    assert word in reply.json()["error"]["message"]


def test_a_prompt_that_does_not_fit_is_told_in_the_words_clients_look_for(server: Running) -> None:
    reply = post(server, messages=[{"role": "user", "content": "x" * 5000}])
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("prompt is too long")
    assert "4096" in reply.json()["error"]["message"]


def test_a_quiet_stream_is_kept_alive_by_ping_events(scripted: Scripted) -> None:
    server = scripted(delay_s=0.3, server=quick_pings())
    assert [event["type"] for event in events_of(server)].count("ping") > 2


def test_closing_a_stream_stops_the_engine(scripted: Scripted) -> None:
    server = scripted(["word " * 200], delay_s=0.05)
    with server.http() as http, http.stream("POST", "/v1/messages", json=BODY | {"stream": True}) as reply:
        next(reply.iter_lines())
    assert wait_for(lambda: server.engine.stats().num_running == 0) < 0.2
