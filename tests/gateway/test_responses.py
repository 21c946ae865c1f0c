from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from atlas.engine import ScriptedEngine
from atlas.settings import ServerSettings
from tests.gateway.conftest import MODEL, Running, Scripted, deps_of, quick_pings, serving, wait_for

BODY: dict[str, Any] = {"model": MODEL, "input": "hi"}
ADD: Any = {
    "type": "function",
    "name": "add",
    "description": "Add.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": False,
}
PATCH: Any = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
PATCH_CALL = '<tool_call>\n{"name": "apply_patch", "arguments": {"input": "*** Begin\\n+\\"x\\""}}\n</tool_call>'
REPLY = "<think>Let me see.</think>I will add.\n" + CALL + "\n" + PATCH_CALL
OUTPUT = ["reasoning", "message", "function_call", "custom_tool_call"]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine([REPLY], model=MODEL))) as running:
        yield running


@pytest.fixture
def client(server: Running) -> OpenAI:
    return server.openai()


def post(server: Running, **body: object) -> httpx.Response:
    with server.http() as http:
        return http.post("/v1/responses", json=BODY | body)


def events_of(server: Running, **body: object) -> list[dict[str, Any]]:
    """The events of a stream, comments left out; each must carry its name twice and the next number."""
    events = []
    for block in post(server, stream=True, **body).text.strip().split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == "event: " + events[-1]["type"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def without_ids(output: list[Any]) -> list[Any]:
    """Items, or the SDK's objects of them, but for what is drawn anew for every answer."""
    plain = [item if isinstance(item, dict) else item.model_dump(exclude_none=True) for item in output]
    return [{key: value for key, value in item.items() if key not in ("id", "call_id", "parsed_arguments")} for item in plain]


def test_an_answer_has_items_status_and_usage(client: OpenAI) -> None:
    reply = client.responses.create(model=MODEL, input="hi", tools=[ADD, PATCH], instructions="Be brief.", metadata={"a": "b"})
    assert [item.type for item in reply.output] == OUTPUT
    reasoning, message, call, custom = [item.model_dump() for item in reply.output]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert reasoning["summary"] == []
    assert message["content"][0]["text"] == reply.output_text == "I will add."
    assert (call["name"], json.loads(call["arguments"])) == ("add", {"a": 1})
    assert (custom["name"], custom["input"]) == ("apply_patch", '*** Begin\n+"x"')
    assert len({item["id"] for item in (reasoning, message, call, custom)}) == 4
    assert call["call_id"] != custom["call_id"]
    assert reply.status == "completed"
    assert (reply.model, reply.instructions, reply.metadata) == (MODEL, "Be brief.", {"a": "b"})
    assert reply.usage is not None
    assert reply.usage.output_tokens > reply.usage.output_tokens_details.reasoning_tokens > 0
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply.usage.input_tokens_details.cached_tokens == 0


def test_the_sdk_builds_the_same_response_from_a_stream(client: OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input="hi", tools=[ADD, PATCH])
    with client.responses.stream(model=MODEL, input="hi", tools=[ADD, PATCH]) as stream:
        seen = list(stream)
        final = stream.get_final_response()
    assert without_ids(final.output) == without_ids(whole.output)
    assert final.usage == whole.usage
    assert final.status == "completed"
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == whole.output_text


def test_every_event_has_the_fields_that_the_sdk_declares(server: Running) -> None:
    """Validated, unlike what the SDK does itself, against its own types."""
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for given in events_of(server, tools=[ADD, PATCH]):
        event = adapter.validate_python(given)
        assert event.type == given["type"]


def test_events_come_in_openais_order(server: Running) -> None:
    events = events_of(server, tools=[ADD, PATCH])
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    kinds: list[str] = []
    for event in events[2:-1]:
        name = event["type"].removeprefix("response.")
        if name == "output_item.added":
            kinds.append("")
        assert event["output_index"] == len(kinds) - 1
        if name.endswith(".delta"):
            kinds[-1] = kinds[-1].removesuffix(" " + name) + " " + name
        else:
            kinds[-1] += " " + name
    opened, closed = " output_item.added", " output_item.done"
    part = " content_part.added {0}.delta {0}.done content_part.done"
    call = " {0}.delta {0}.done"
    assert kinds == [
        opened + part.format("reasoning_text") + closed,
        opened + part.format("output_text") + closed,
        opened + call.format("function_call_arguments") + closed,
        opened + call.format("custom_tool_call_input") + closed,
    ]
    last = events[-1]
    assert last["type"] == "response.completed"
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert last["response"]["output"] == done
    assert [item["status"] for item in done] == ["completed"] * 4


def test_pieces_join_to_what_is_done(server: Running) -> None:
    events = events_of(server, tools=[ADD, PATCH])
    for name, field in (
        ("reasoning_text", "text"),
        ("output_text", "text"),
        ("function_call_arguments", "arguments"),
        ("custom_tool_call_input", "input"),
    ):
        [done] = [event for event in events if event["type"] == f"response.{name}.done"]
        pieces = [event for event in events if event["type"] == f"response.{name}.delta"]
        assert "".join(event["delta"] for event in pieces) == done[field]
        assert {event["item_id"] for event in pieces} == {done["item_id"]}


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_was_cut_is_incomplete(scripted: Scripted, stream: bool) -> None:
    server = scripted(["one two three four"])
    if stream:
        last = events_of(server, max_output_tokens=2)[-1]
        assert last["type"] == "response.incomplete"
        reply = last["response"]
    else:
        reply = post(server, max_output_tokens=2).json()
    assert reply["status"] == reply["output"][0]["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["usage"]["output_tokens"] == 2
    assert reply["output"][0]["content"][0]["text"] == "one two"


@pytest.mark.parametrize("stream", [True, False])
def test_an_empty_answer_is_an_empty_message(scripted: Scripted, stream: bool) -> None:
    server = scripted(["<think>"])
    reply = events_of(server)[-1]["response"] if stream else post(server).json()
    assert [item["type"] for item in reply["output"]] == ["message"]
    assert reply["output"][0]["content"][0]["text"] == ""


def test_a_prompt_that_does_not_fit_has_the_code_that_agents_look_for(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model=MODEL, input="x" * 5000)
    assert caught.value.code == "context_length_exceeded"


def test_a_quiet_stream_is_kept_alive_by_comments(scripted: Scripted) -> None:
    server = scripted(delay_s=0.3, server=quick_pings())
    assert post(server, stream=True).text.count(": ping\n\n") > 2


def test_closing_a_stream_stops_the_engine(scripted: Scripted) -> None:
    server = scripted(["word " * 200], delay_s=0.05)
    with server.openai().responses.create(model=MODEL, input="hi", stream=True) as stream:
        next(iter(stream))
        assert server.engine.stats().num_running == 1
    assert wait_for(lambda: server.engine.stats().num_running == 0) < 0.2


def test_a_disconnect_stops_an_answer_that_is_not_streamed(scripted: Scripted) -> None:
    server = scripted(["word " * 200], delay_s=0.05)
    with server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/responses", json=BODY, timeout=0.2)
    assert wait_for(lambda: server.engine.stats().num_running == 0) < 0.2


def test_a_drain_ends_a_stream_with_a_failed_response(scripted: Scripted) -> None:
    server = scripted(["word " * 500], delay_s=0.05, server=ServerSettings(drain_timeout_s=0.3))
    stream = iter(server.openai().responses.create(model=MODEL, input="hi", stream=True))
    assert next(stream).type == "response.created"
    server.drain()
    *_, last = stream
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    error = last.response.to_dict()["error"]
    assert isinstance(error, dict)
    assert error["code"] == "engine_unavailable"
    assert "shutting down" in error["message"]
