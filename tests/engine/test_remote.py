from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from atlas.engine.remote import RemoteEngine
from atlas.errors import (
    AtlasError,
    BadRequest,
    ContextLengthExceeded,
    EngineOverloaded,
    EngineUnavailable,
    ModelNotFound,
    Unsupported,
    UpstreamFailed,
)
from atlas.types import Delta, Generation, Message, Prompt, Sampling, Tool, ToolCall


@dataclass
class Peer:
    """An HTTP server that says what a test tells it to say, word for word. A float in a reply is a pause in seconds."""

    replies: dict[str, tuple[int, list[bytes | float]]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    num_hung_up: int = 0  # connections the client closed before the reply was over
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path = head[0].split()[1]
        self.requests.append((path, headers, json.loads(body) if body else None))
        status, pieces = self.replies.get(path, (404, [b'{"detail": "Not Found"}']))
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        writer.write(f"HTTP/1.1 {status} X\r\nconnection: close\r\n{extra}\r\n".encode())
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.write(piece)
                await writer.drain()
            elif await self.is_hung_up(reader, piece):
                self.num_hung_up += 1
                break
        writer.close()

    async def is_hung_up(self, reader: asyncio.StreamReader, pause_s: float) -> bool:
        try:
            return await asyncio.wait_for(reader.read(1), pause_s) == b""
        except TimeoutError:
            return False


@asynccontextmanager
async def running(**paths: tuple[int, list[bytes | float]]) -> AsyncIterator[Peer]:
    peer = Peer({"/v1/" + name.replace("__", "/"): reply for name, reply in paths.items()})
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    peer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        yield peer


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def chat(delta: dict[str, Any], *, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    return event({"choices": [{"index": index, "delta": delta, "finish_reason": finish, **more}]})


USAGE = event(
    {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5}}}
)
DONE = event(b"[DONE]")
HELLO: list[bytes | float] = [
    b": ping\n\n", chat({"role": "assistant", "content": ""}), chat({"content": "Hel"}), chat({"content": "lo"}),
    chat({}, finish="stop"), USAGE, DONE,
]  # fmt: skip


def ask(**fields: Any) -> Prompt:
    return Prompt(messages=(Message(role="user", content="hi"),), **fields)


async def answer(engine: RemoteEngine, prompt: Prompt) -> Generation:
    return (await (await engine.submit(prompt)).all())[0]


async def read(engine: RemoteEngine, prompt: Prompt) -> tuple[list[Delta], list[Generation]]:
    group = await engine.submit(prompt)
    return [delta async for delta in group], await group.all()


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


async def test_json_may_hold_line_separators_and_come_in_any_pieces() -> None:
    text = "a\u2028b\x85c\u2029é🙂"
    whole = event(json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}, ensure_ascii=False).encode())
    pieces: list[bytes | float] = [part for byte in whole for part in (bytes([byte]),)]
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
        "repetition_penalty": 1.1, "logprobs": True, "top_logprobs": 0, "parallel_tool_calls": False,
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
        await engine.close()


async def test_a_peer_that_sends_no_logprobs_when_asked_has_failed() -> None:
    async with running(chat__completions=(200, HELLO)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        with pytest.raises(UpstreamFailed, match="asked for log-probabilities"):
            await answer(engine, ask(top_logprobs=0))
        await engine.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110  the peer is a plain counter
            await asyncio.sleep(0.01)


SLOW: list[bytes | float] = [chat({"content": "a"}), chat({"content": "b"}, index=1), 30.0]


async def test_cancelling_everything_closes_the_connection_at_once() -> None:
    async with running(chat__completions=(200, SLOW)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(n=2))
        await anext(aiter(group))
        started_s = time.monotonic()
        group.cancel([0])
        assert not group.is_done
        group.cancel()
        assert [generation.finish_reason for generation in await group.all()] == ["abort", "abort"]
        assert time.monotonic() - started_s < 1
        await until(lambda: peer.num_hung_up == 1 and engine.stats().num_running == 0)
        await engine.close()


async def test_a_cancel_before_the_first_byte_closes_the_connection_too() -> None:
    async with running(chat__completions=(200, [30.0])) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask())
        group.cancel()
        group.cancel()
        assert [generation.finish_reason for generation in await group.all()] == ["abort"]
        await until(lambda: peer.num_hung_up == 1)
        await engine.close()


async def test_a_deadline_aborts_and_hangs_up() -> None:
    async with running(chat__completions=(200, SLOW)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        generations = await (await engine.submit(ask(n=2, deadline_s=0.1))).all()
        assert [(generation.text, generation.finish_reason) for generation in generations] == [("a", "abort"), ("b", "abort")]
        await until(lambda: peer.num_hung_up == 1)
        await engine.close()


async def test_a_deadline_before_the_peer_accepts_aborts() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        engine = RemoteEngine(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", model="m")
        generations = await (await engine.submit(ask(n=2, deadline_s=0.1))).all()
        assert [generation.finish_reason for generation in generations] == ["abort", "abort"]
        await engine.close()


async def test_giving_up_while_the_peer_still_thinks_closes_the_connection() -> None:
    hung_up = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        hung_up.set()
        writer.close()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        engine = RemoteEngine(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", model="m")
        submitting = asyncio.create_task(engine.submit(ask()))
        await asyncio.sleep(0.1)
        submitting.cancel()
        await asyncio.wait_for(hung_up.wait(), 2)
        with pytest.raises(asyncio.CancelledError):
            await submitting
        await engine.close()


async def test_closing_aborts_what_runs() -> None:
    async with running(chat__completions=(200, SLOW)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(n=2))
        await engine.close()
        await engine.close()
        assert {generation.finish_reason for generation in await group.all()} == {"abort"}
        with pytest.raises(EngineUnavailable):
            await engine.submit(ask())
        await until(lambda: peer.num_hung_up == 1)


def error(message: str, **fields: Any) -> list[bytes | float]:
    return [json.dumps({"error": {"message": message, "type": "x", "param": None, **fields}}).encode()]


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, error("n is odd", param="n", code="invalid_request"), BadRequest, "answered 400: n is odd"),
        (400, error("too long", code="context_length_exceeded"), ContextLengthExceeded, "^too long$"),
        (404, error("no model 'm'", code="model_not_found"), ModelNotFound, "no model"),
        (422, [b'{"detail": [{"msg": "bad"}]}'], BadRequest, "bad"),
        (401, error("bad key"), UpstreamFailed, "answered 401: bad key"),
        (404, [b'{"detail": "Not Found"}'], UpstreamFailed, "answered 404: Not Found"),
        (429, error("slow down"), EngineOverloaded, "slow down"),
        (503, error("loading"), EngineUnavailable, "loading"),
        (500, [b"<html>oops</html>"], UpstreamFailed, "oops"),
        (500, [], UpstreamFailed, "no reason given"),
    ],
)
async def test_a_refusal_of_the_peer_is_raised_by_submit(
    status: int, body: list[bytes | float], kind: type[AtlasError], message: str
) -> None:
    async with running(chat__completions=(status, body)) as peer:
        peer.headers["retry-after"] = "7"
        engine = RemoteEngine(peer.url, model="m")
        with pytest.raises(kind, match=message) as caught:
            await engine.submit(ask(n=2, sampling=(Sampling(seed=1), Sampling(seed=2))))
        assert caught.value.retry_after_s == (7 if status in (429, 503) else None)
        await engine.close()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([chat({"content": "a"})], "ended its stream before candidate 0"),
        ([chat({"content": "a"}), DONE], "ended its stream before candidate 0"),
        ([event({"error": {"message": "out of memory"}})], "failed while answering: out of memory"),
        ([event(b"{not json")], "not OpenAI's format"),
        ([event({"choices": [{"delta": {"content": 3.5}}]})], "not OpenAI's format"),
        ([chat({"content": "a"}, index=7)], "sent choice 7 of 1"),
    ],
)
async def test_a_broken_stream_fails_the_group(lines: list[bytes | float], message: str) -> None:
    async with running(chat__completions=(200, lines)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        with pytest.raises(UpstreamFailed, match=message):
            await answer(engine, ask())
        await engine.close()


async def test_a_peer_that_is_not_there_is_unavailable_for_now() -> None:
    async with running() as peer:
        pass
    engine = RemoteEngine(peer.url, model="m")
    with pytest.raises(EngineUnavailable, match="cannot be reached") as caught:
        await engine.submit(ask())
    assert caught.value.retry_after_s == 5
    await engine.close()


async def test_a_silent_peer_has_failed() -> None:
    async with running(chat__completions=(200, SLOW)) as peer:
        engine = RemoteEngine(peer.url, model="m", timeout_s=0.2)
        with pytest.raises(UpstreamFailed, match="broke off: ReadTimeout"):
            await answer(engine, ask(n=2))
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
    for attempt in (engine.count_tokens(ask()), engine.tokenize("x"), engine.detokenize([1]), engine.submit(ask(adapter="a"))):
        with pytest.raises(Unsupported):
            await attempt
    with pytest.raises(Unsupported, match="features"):
        await engine.submit(ask(features=True))
    await engine.close()
