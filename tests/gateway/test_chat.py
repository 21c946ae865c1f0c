from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from openai import BadRequestError, OpenAI

from atlas.engine import ScriptedEngine
from atlas.types import Message, Prompt
from tests.gateway.conftest import MODEL, Running, Scripted, deps_of, quick_pings, serving, wait_for

HI = [{"role": "user", "content": "hi"}]
BODY = {"model": MODEL, "messages": HI}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(["Hello world!"], model=MODEL))) as running:
        yield running


@pytest.fixture(scope="module")
def thinker() -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(["<think>Let me see.</think>I will add.\n" + CALL], model=MODEL))) as running:
        yield running


@pytest.fixture
def client(server: Running) -> OpenAI:
    return server.openai()


def post(server: Running, **body: object) -> httpx.Response:
    with server.http() as http:
        return http.post("/v1/chat/completions", json=BODY | body)


def prompt_of(server: Running, **body: object) -> Prompt:
    """The prompt the engine got for this body."""
    reply = post(server, **body)
    assert reply.status_code == 200, reply.text
    return server.engine.prompts[-1]


def events_of(server: Running, **body: object) -> list[dict[str, object]]:
    lines = post(server, stream=True, **body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_an_answer_has_text_finish_reason_and_usage(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "Hello world!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_says_the_same_as_a_whole_answer(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello world!"
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_and_without_choices_when_asked_for(server: Running) -> None:
    *others, last = events_of(server, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert isinstance(last["usage"], dict)
    assert last["usage"]["completion_tokens"] == 3  # two words and the end of the turn
    assert all(event["usage"] is None for event in others)


def test_usage_is_absent_from_a_stream_that_did_not_ask(server: Running) -> None:
    assert all("usage" not in event for event in events_of(server))


def test_n_answers_are_all_delivered(scripted: Scripted) -> None:
    server = scripted(["one", "two", "three"])
    reply = server.openai().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], n=3, seed=0)
    assert [choice.message.content for choice in reply.choices] == ["one", "two", "three"]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    texts = dict.fromkeys(range(3), "")
    for chunk in server.openai().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], n=3, seed=0, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "one", 1: "two", 2: "three"}


def test_seed_zero_is_a_seed(server: Running) -> None:
    assert prompt_of(server, seed=0).sampling[0].seed == 0
    assert prompt_of(server).sampling[0].seed is None


def test_tool_calls_come_whole(thinker: Running) -> None:
    reply = thinker.openai().chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "hi"}],
        tools=[ADD],  # type: ignore[list-item]  # a plain dict
    )
    message = reply.choices[0].message
    assert reply.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    call = message.tool_calls[0]
    assert call.type == "function"
    assert call.function.name == "add"
    assert json.loads(call.function.arguments) == {"a": 1}
    assert message.model_extra == {"reasoning_content": "Let me see."}


def test_tool_calls_stream_as_deltas_that_join_to_json(thinker: Running) -> None:
    events = events_of(thinker, tools=[ADD])
    deltas = [event["choices"][0]["delta"] for event in events]  # type: ignore[index]  # JSON
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "add"
    assert calls[0]["type"] == "function"
    assert calls[0]["id"]
    assert all("name" not in call["function"] and "id" not in call for call in calls[1:])
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"a": 1}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Let me see."
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"  # type: ignore[index]  # JSON


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "add"}}, "tool:add"),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]},
            },
            "required",
        ),
    ],
)
def test_tool_choice_reaches_the_engine(thinker: Running, choice: object, expected: str) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    prompt = prompt_of(thinker, tools=[ADD, other], tool_choice=choice, parallel_tool_calls=False)
    assert prompt.tool_choice == expected
    assert [tool.name for tool in prompt.tools] == (["add"] if isinstance(choice, dict) else ["add", "other"])
    assert not prompt.parallel_tool_calls


def test_a_conversation_with_tool_results_reaches_the_engine(thinker: Running) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    prompt = prompt_of(
        thinker,
        tools=[ADD],
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        ],
    )
    assert prompt.messages[0] == Message(role="system", content="be brief")
    assert prompt.messages[1].content == "one\ntwo"
    assert prompt.messages[2].tool_calls[0].arguments == '{"a": 1}'
    assert prompt.messages[2].reasoning == "hm"
    assert prompt.messages[3] == Message(role="tool", content="2", tool_call_id="call_1")


def test_sampling_fields_reach_the_engine(server: Running) -> None:
    prompt = prompt_of(
        server,
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=-0.2,
        logit_bias={"42": -100},
        max_tokens=7,
        max_completion_tokens=5,
        stop="!",
    )
    sampling = prompt.sampling[0]
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 0, 0.1)
    assert (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1.1, 0.2, -0.2)
    assert sampling.logit_bias == {42: -100.0}
    assert prompt.max_tokens == 5
    assert prompt.stop == ("!",)
    assert prompt.owner == server.deps.store.accounts.owner().id


def test_temperature_left_out_is_the_models_own(server: Running) -> None:
    assert prompt_of(server).sampling[0].temperature is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (None, None)),
        ({"reasoning_effort": "none"}, (False, None)),
        ({"reasoning_effort": "low"}, (True, 1024)),
        ({"reasoning_effort": "high"}, (True, None)),
        ({"thinking_budget_tokens": 2}, (None, 2)),
        ({"thinking_budget_tokens": 0}, (False, None)),
        ({"reasoning_effort": "low", "thinking_budget_tokens": 2}, (True, 2)),
        ({"chat_template_kwargs": {"enable_thinking": False}}, (False, None)),
        ({"chat_template_kwargs": {"enable_thinking": True}}, (True, None)),
    ],
)
def test_thinking_is_switched_and_bounded(thinker: Running, body: dict[str, object], expected: tuple[object, object]) -> None:
    prompt = prompt_of(thinker, **body)
    assert (prompt.thinking, prompt.thinking_budget_tokens) == expected


def test_reasoning_tokens_are_counted(thinker: Running) -> None:
    usage = post(thinker).json()["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] > 0


def test_logprobs_of_a_stream_join_to_those_of_a_whole_answer(server: Running) -> None:
    whole = post(server, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    pieces = [event["choices"][0]["logprobs"] for event in events_of(server, logprobs=True, top_logprobs=2)]  # type: ignore[index]  # JSON
    assert [token for piece in pieces if piece for token in piece["content"]] == whole
    assert "".join(token["token"] for token in whole) == "Hello world!"
    assert bytes(whole[0]["bytes"]).decode() == whole[0]["token"]
    assert len(whole[0]["top_logprobs"]) == 2


@pytest.mark.parametrize("part", ["image_url", "input_audio", "file"])
def test_parts_that_are_not_text_are_refused_by_name(server: Running, part: str) -> None:
    reply = post(server, messages=[{"role": "user", "content": [{"type": part, part: {"url": "x"}}]}])
    assert reply.status_code == 400
    assert part in reply.json()["error"]["message"]
    assert reply.json()["error"]["code"] == "unsupported_parameter"
    assert reply.json()["error"]["param"] == "messages[0].content[0].type"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "x"}]),
        ("function_call", "auto"),
        ("audio", {"voice": "x", "format": "wav"}),
        ("web_search_options", {"search_context_size": "low"}),
        ("modalities", ["text", "audio"]),
        ("best_of", 3),
        ("guided_json", {"type": "object"}),
        ("guided_grammar", "root ::= x"),
        ("grammar", "root ::= x"),  # this engine cannot
        ("response_format", {"type": "json_object"}),  # this engine cannot
    ],
)
def test_fields_that_change_the_meaning_are_refused_by_name(server: Running, field: str, value: object) -> None:
    reply = post(server, **{field: value})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field
    assert reply.json()["error"]["code"] == "unsupported_parameter"


def test_unknown_and_harmless_fields_are_ignored(server: Running) -> None:
    harmless = {"store": True, "metadata": {"a": "b"}, "prediction": {"type": "content", "content": "x"}, "user": "u"}
    neutral = {"functions": None, "best_of": 1, "modalities": ["text"], "service_tier": "auto", "x_unheard_of": [1]}
    assert post(server, **harmless, **neutral).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"seed": "x"}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"logit_bias": {"hello": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "gone"}}}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ],
)
def test_wrong_values_are_named_in_the_error(server: Running, body: dict[str, object], param: str) -> None:
    reply = post(server, **body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_a_prompt_that_does_not_fit_is_refused_with_both_counts(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 5000}])
    assert caught.value.code == "context_length_exceeded"
    assert "4096" in str(caught.value)
    assert "50" in str(caught.value)


def test_a_quiet_stream_is_kept_alive_by_comments(scripted: Scripted) -> None:
    server = scripted(delay_s=0.3, server=quick_pings())
    with server.http() as http:
        text = http.post("/v1/chat/completions", json=BODY | {"stream": True}).text
    assert text.startswith(": ping\n\n")
    assert text.endswith("data: [DONE]\n\n")


def test_closing_a_stream_stops_the_engine_within_200_ms(scripted: Scripted) -> None:
    server = scripted(["word " * 200], delay_s=0.05)
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True, "n": 3}) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert server.engine.stats().num_running == 3
    assert wait_for(lambda: server.engine.stats().num_running == 0) < 0.2


def test_a_disconnect_stops_an_answer_that_is_not_streamed_within_200_ms(scripted: Scripted) -> None:
    server = scripted(["word " * 200], delay_s=0.05)
    with server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=BODY | {"n": 3}, timeout=0.3)
    assert wait_for(lambda: server.engine.stats().num_running == 0) < 0.2


def test_an_answer_in_the_queue_is_cancelled_by_a_disconnect_too(scripted: Scripted) -> None:
    server = scripted(delay_s=30)
    with server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=BODY, timeout=0.2)
    assert wait_for(lambda: server.engine.stats().num_running == 0) < 0.2
