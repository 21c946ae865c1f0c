"""What a remote engine asks and understands; how its answers end is in test_remote_endings."""

from __future__ import annotations

import gc
import json
import math
import weakref
from typing import Any

import pytest

from atlas.engine import Group
from atlas.engine.remote import RemoteEngine
from atlas.errors import ModelNotFound, Unsupported, UpstreamFailed
from atlas.types import Message, Prompt, Sampling, Tool, ToolCall
from tests.engine.peer import DONE, HELLO, USAGE, answer, ask, chat, event, read, running, until


async def test_an_answer_streams_and_its_usage_counts() -> None:
    async with running(chat__completions=(200, HELLO)) as peer:
        engine = RemoteEngine(peer.url, model="m", api_key="sk-1")
        group = await engine.submit(ask())
        deltas = [delta async for delta in group]
        (generation,) = await group.all()
        assert [delta.text for delta in deltas] == ["Hel", "lo", ""]
        assert [delta.finish_reason for delta in deltas] == [None, None, "stop"]
        assert (generation.text, generation.finish_reason, generation.num_tokens) == ("Hello", "stop", 4)
        assert (group.prompt_tokens, group.cached_tokens) == (9, 5)
        assert peer.requests[0][1]["authorization"] == "Bearer sk-1"
        await engine.close()


async def test_an_answer_leaves_nothing_to_the_collector() -> None:
    async with running(chat__completions=(200, HELLO)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        gc.disable()
        try:
            group = weakref.ref(await answered(engine))
            await until(lambda: group() is None)
        finally:
            gc.enable()
            await engine.close()


async def answered(engine: RemoteEngine) -> Group:
    group = await engine.submit(ask())
    await group.all()
    return group


async def test_json_may_hold_line_separators_and_come_in_any_pieces() -> None:
    text = "a\u2028b\x85c\u2029é🙂"
    whole = event(json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}, ensure_ascii=False).encode())
    pieces: list[bytes | float] = [part for byte in whole for part in (bytes([byte]), 0.002)]  # the pause sends each on its own
    async with running(chat__completions=(200, [*pieces, DONE])) as peer:
        engine = RemoteEngine(peer.url, model="m")
        assert (await answer(engine, ask())).text == text
        await engine.close()


async def test_every_field_of_a_prompt_reaches_the_peer() -> None:
    tool = Tool(name="f", description="does f", parameters={"type": "object"}, strict=True)
    call = ToolCall(id="c1", name="f", arguments="{}")
    prompt = Prompt(
        messages=(
            Message(role="assistant", content="", reasoning="hm", tool_calls=(call,)),
            Message(role="tool", content="3", tool_call_id="c1"),
        ),
        sampling=(
            Sampling(temperature=0.0, top_p=0.9, top_k=20, min_p=0.1, seed=0, logit_bias={5: -1.0}, repetition_penalty=1.1),
        ),
        n=2,
        stop=("x",),
        max_tokens=7,
        tools=(tool,),
        tool_choice="tool:f",
        parallel_tool_calls=False,
        json_schema={"type": "object"},
        top_logprobs=0,
        thinking=False,
    )
    lines: list[bytes | float] = [chat({}, index=index, finish="stop") for index in range(2)]
    async with running(chat__completions=(200, [*lines, DONE])) as peer:
        engine = RemoteEngine(peer.url, model="m")
        await (await engine.submit(prompt)).all()
        await engine.close()
    function = {"name": "f", "description": "does f", "parameters": {"type": "object"}, "strict": True}
    assert peer.requests[0][2] == {
        "model": "m", "n": 2, "stream": True, "stream_options": {"include_usage": True}, "stop": ["x"], "max_tokens": 7,
        "temperature": 0.0, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": 0, "logit_bias": {"5": -1.0},
        "repetition_penalty": 1.1, "logprobs": True, "top_logprobs": 1, "parallel_tool_calls": False,
        "chat_template_kwargs": {"enable_thinking": False},
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
        "messages": [
            {"role": "assistant", "content": "", "reasoning_content": "hm",
             "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
        ],
    }  # fmt: skip


async def test_a_plain_prompt_sends_only_what_is_set() -> None:
    lines: list[bytes | float] = [event({"choices": [{"text": "x", "finish_reason": "length"}]}), DONE]
    async with running(completions=(200, lines)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        generation = await answer(engine, Prompt(text="def f", suffix="return", max_tokens=1))
        assert (generation.text, generation.finish_reason) == ("x", "length")
        await answer(engine, Prompt(tokens=(1, 2)))
        await engine.close()
    shared = {"model": "m", "n": 1, "stream": True, "stream_options": {"include_usage": True}}
    assert [request[2] for request in peer.requests] == [
        shared | {"prompt": "def f", "suffix": "return", "max_tokens": 1},
        shared | {"prompt": [1, 2]},
    ]


async def test_thinking_and_tool_calls_are_put_together() -> None:
    def piece(**fields: Any) -> bytes:
        return chat({"tool_calls": [fields]})

    lines: list[bytes | float] = [
        chat({"reasoning_content": "hm"}), chat({"reasoning": "m"}),
        piece(index=0, id="c1", type="function", function={"name": "f", "arguments": ""}),
        piece(index=0, function={"arguments": '{"a"'}), piece(index=0, function={"arguments": ": 1}"}),
        piece(index=1, function={"name": "g", "arguments": "{}"}),
        chat({}, finish="tool_calls"), DONE,
    ]  # fmt: skip
    async with running(chat__completions=(200, lines)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        deltas, (generation,) = await read(engine, ask(tools=(Tool(name="f"),)))
        await engine.close()
    assert generation.reasoning == "hmm" == "".join(delta.reasoning for delta in deltas)
    assert [(call.name, call.arguments) for call in generation.tool_calls] == [("f", '{"a": 1}'), ("g", "{}")]
    assert generation.tool_calls[0].id == "c1"
    assert generation.tool_calls[1].id.startswith("call_")
    assert generation.finish_reason == "tool_calls"


async def test_candidates_of_one_request_end_one_by_one() -> None:
    lines: list[bytes | float] = [
        chat({"content": "a"}), chat({"content": "b"}, index=1), chat({}, index=1, finish="length"), 0.3,
        chat({"content": "c"}), chat({}, finish="stop"), USAGE, DONE,
    ]  # fmt: skip
    async with running(chat__completions=(200, lines)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(n=2))
        first = await anext(group.finished())
        assert not group.is_done
        assert (first.index, first.text, first.finish_reason, first.num_tokens) == (1, "b", "length", 1)
        assert [generation.text for generation in await group.all()] == ["ac", "b"]
        await engine.close()


async def test_a_peer_that_counts_one_of_several_candidates_is_not_believed() -> None:
    """llama-server: a usage after each candidate, which is that candidate's alone."""
    pieces = [chat({"content": "x"}, index=index % 2) for index in range(10)]
    lines: list[bytes | float] = [
        *pieces,
        chat({}, index=0, finish="length"),
        USAGE,
        chat({}, index=1, finish="length"),
        USAGE,
        DONE,
    ]
    async with running(chat__completions=(200, lines)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(n=2))
        await group.all()
        assert (group.completion_tokens, engine.stats().generated_tokens) == (10, 10)
        await engine.close()


async def test_candidates_sampled_differently_are_requests_of_their_own() -> None:
    async with running(chat__completions=(200, HELLO)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(n=2, sampling=(Sampling(seed=1), Sampling(seed=2))))
        assert [generation.text for generation in await group.all()] == ["Hello", "Hello"]
        await engine.close()
    assert sorted(request[2]["seed"] for request in peer.requests) == [1, 2]
    assert {request[2]["n"] for request in peer.requests} == {1}


async def test_logprobs_of_chat_and_of_plain_completions_are_read() -> None:
    top = [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}, {"token": "x", "logprob": -1.5}]
    content = [{"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": top}]
    plain = {"tokens": ["é"], "token_logprobs": [-0.5], "top_logprobs": [{"x": -1.5, "é": -0.5}], "text_offset": [0]}
    async with running(
        chat__completions=(200, [chat({"content": "é"}, logprobs={"content": content}, finish="stop"), DONE]),
        completions=(200, [event({"choices": [{"text": "é", "logprobs": plain, "finish_reason": "stop"}]}), DONE]),
    ) as peer:
        engine = RemoteEngine(peer.url, model="m")
        for prompt in (ask(top_logprobs=2), Prompt(text="x", top_logprobs=2)):
            generation = await answer(engine, prompt)
            (logprob,) = generation.logprobs
            assert (logprob.text, logprob.logprob) == ("é".encode(), -0.5)
            assert [(text, value) for _, text, value in logprob.top] == [("é".encode(), -0.5), (b"x", -1.5)]
            assert generation.mean_logprob == -0.5
        for prompt in (ask(top_logprobs=0), Prompt(text="x", top_logprobs=0)):
            (logprob,) = (await answer(engine, prompt)).logprobs
            assert (logprob.logprob, logprob.top) == (-0.5, ())
        await engine.close()
    asked = [(request[2]["logprobs"], request[2].get("top_logprobs")) for request in peer.requests]
    assert asked == [(True, 2), (2, None), (True, 1), (1, None)], (
        "llama-server sends none at all when asked for none beside the token's"
    )


async def test_a_peer_that_sends_no_logprobs_when_asked_has_failed() -> None:
    async with running(chat__completions=(200, HELLO)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        with pytest.raises(UpstreamFailed, match="asked for log-probabilities"):
            await answer(engine, ask(top_logprobs=0))
        await engine.close()


async def test_an_unnamed_model_is_the_first_the_peer_lists() -> None:
    models = json.dumps({"object": "list", "data": [{"id": "qwen", "max_model_len": 4096}, {"id": "other"}]}).encode()
    async with running(models=(200, [models]), chat__completions=(200, HELLO)) as peer:
        engine = RemoteEngine(peer.url)
        assert (await answer(engine, ask())).model == "qwen"
        assert (engine.capabilities.model, engine.capabilities.context_tokens) == ("qwen", 4096)
        with pytest.raises(ModelNotFound):
            await engine.submit(ask(model="other"))
        assert [request[0] for request in peer.requests] == ["/v1/models", "/v1/chat/completions"]
        await engine.close()


async def test_embeddings_come_in_order_and_at_unit_length() -> None:
    reply = {"data": [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3, 4]}], "usage": {"prompt_tokens": 5}}
    async with running(embeddings=(200, [json.dumps(reply).encode()])) as peer:
        engine = RemoteEngine(peer.url, model="m")
        embeddings = await engine.embed(["a", "b"])
        assert embeddings.vectors == ((0.6, 0.8), (0.0, 1.0))
        assert all(math.isclose(math.hypot(*vector), 1) for vector in embeddings.vectors)
        assert embeddings.num_tokens == 5
        with pytest.raises(UpstreamFailed, match="sent 2 embeddings for 1 inputs"):
            await engine.embed(["a"])
        await engine.close()


async def test_what_the_wire_cannot_do_is_refused() -> None:
    engine = RemoteEngine("http://127.0.0.1:9/v1", model="m")
    for attempt in (engine.count_tokens(ask()), engine.tokenize("x"), engine.pieces([1]), engine.submit(ask(adapter="a"))):
        with pytest.raises(Unsupported):
            await attempt
    with pytest.raises(Unsupported, match="features"):
        await engine.submit(ask(features=True))
    with pytest.raises(Unsupported, match="grammar"):
        await engine.submit(ask(grammar='root ::= "a"'))
    with pytest.raises(Unsupported, match="raw prompts"):
        await engine.submit(Prompt(text="x", json_schema={}))
    await engine.close()
