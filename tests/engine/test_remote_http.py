"""What a remote engine does with its connections, and with answers it wants whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from atlas.engine import http1
from atlas.engine.remote import RemoteEngine
from atlas.errors import BadRequest, EngineUnavailable, UpstreamFailed
from atlas.types import Message, Prompt, Tool
from tests.engine.peer import DONE, HELLO, answer, ask, chat, error, read, running, until


@dataclass
class Keeper:
    """A server that keeps connections, and hangs up where the next request of one would be its `patience`-th + 1."""

    reply: bytes
    patience: int = 1000
    num_connections: int = 0
    num_open: int = 0
    num_requests: int = 0
    largest_body: int = 0
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.num_open += 1
        for _ in range(self.patience):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            self.num_requests += 1
            self.largest_body = max(self.largest_body, length)
            writer.write(self.reply)
        with contextlib.suppress(ConnectionError):
            await reader.read(1)  # the next request has begun, or the client has gone
        writer.close()
        self.num_open -= 1


@asynccontextmanager
async def keeping(reply: bytes, *, patience: int = 1000) -> AsyncIterator[Keeper]:
    keeper = Keeper(reply, patience)
    server = await asyncio.start_server(keeper.serve, "127.0.0.1", 0, limit=2**24)
    keeper.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        yield keeper
        await until(lambda: keeper.num_open == 0)  # an engine that is closed keeps none


def chunked(pieces: list[bytes | float]) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if isinstance(piece, bytes))
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def whole(**message: Any) -> bytes:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 2}}
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()


def as_json(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def test_a_connection_serves_one_request_after_another() -> None:
    for reply, prompt in ((chunked(HELLO), ask()), (as_json(whole(content="Hello")), ask(whole=True))):
        async with keeping(reply) as keeper:
            engine = RemoteEngine(keeper.url, model="m")
            for _ in range(5):
                assert (await answer(engine, prompt)).text == "Hello"
                await until(lambda engine=engine: engine.stats().num_running == 0)
            assert (keeper.num_requests, keeper.num_connections) == (5, 1)
            await engine.close()


@pytest.mark.parametrize("is_whole", [False, True])
async def test_a_connection_that_the_peer_closed_meanwhile_is_replaced(is_whole: bool) -> None:
    reply = as_json(whole(content="Hello")) if is_whole else chunked(HELLO)
    async with keeping(reply, patience=1) as keeper:
        engine = RemoteEngine(keeper.url, model="m")
        for _ in range(3):
            assert (await answer(engine, ask(whole=is_whole))).text == "Hello"
            await until(lambda: engine.stats().num_running == 0)
        assert (keeper.num_requests, keeper.num_connections) == (3, 3)
        await engine.close()


async def test_a_peer_that_hangs_up_without_a_word_is_asked_twice_and_has_failed() -> None:
    async with keeping(b"", patience=0) as keeper:
        engine = RemoteEngine(keeper.url, model="m")
        with pytest.raises(UpstreamFailed, match="broke off"):
            await answer(engine, ask())
        assert keeper.num_connections == 2
        await engine.close()


async def test_a_long_prompt_arrives() -> None:
    async with keeping(chunked(HELLO)) as keeper:
        engine = RemoteEngine(keeper.url, model="m")
        prompt = Prompt(messages=(Message(role="user", content="x" * 3_000_000),))
        assert (await answer(engine, prompt)).text == "Hello"
        assert keeper.largest_body > 3_000_000
        await engine.close()


async def test_a_proxy_of_the_environment_is_used_unless_excepted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as proxy:
        proxy.replies["http://model.test/v1/chat/completions"] = (200, HELLO)
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        engine = RemoteEngine("http://model.test/v1", model="m")
        assert (await answer(engine, ask())).text == "Hello"
        await engine.close()
        direct = RemoteEngine("http://127.0.0.1:9/v1", model="m")
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await answer(direct, ask())
        await direct.close()


async def test_an_answer_wanted_whole_is_not_streamed() -> None:
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": str(i)}} for i in range(2)]
    body = whole(content="Hello", reasoning_content="hm", tool_calls=calls)
    async with running(chat__completions=(200, [body])) as peer:
        engine = RemoteEngine(peer.url, model="m")
        deltas, (generation,) = await read(engine, ask(whole=True, tools=(Tool(name="f"),), max_tokens=9, allowance_tokens=9))
        assert "".join(delta.text for delta in deltas) == generation.text == "Hello"
        assert (generation.reasoning, generation.reasoning_tokens, generation.num_tokens) == ("hm", 2, 4)
        assert [(call.id, call.arguments) for call in generation.tool_calls] == [("c0", "0"), ("c1", "1")]
        assert (peer.requests[0][2]["stream"], "stream_options" in peer.requests[0][2]) == (False, False)
        await engine.close()


@pytest.mark.parametrize("fields", [{"n": 2}, {"allowance_tokens": 5}, {"allowance_tokens": 5, "max_tokens": 6}])
async def test_what_must_be_counted_on_the_way_is_streamed_all_the_same(fields: dict[str, int]) -> None:
    lines = [chat({"content": "x"}, index=index, finish="stop") for index in range(fields.get("n", 1))]
    async with running(chat__completions=(200, [*lines, DONE])) as peer:
        engine = RemoteEngine(peer.url, model="m")
        await (await engine.submit(ask(whole=True, **fields))).all()
        assert peer.requests[0][2]["stream"] is True
        await engine.close()


async def test_a_whole_answer_fails_its_group_and_can_be_given_up() -> None:
    async with running(chat__completions=(400, error("n is odd"))) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(whole=True))
        with pytest.raises(BadRequest, match="n is odd"):
            await group.all()
        peer.replies["/v1/chat/completions"] = (200, [30.0])
        for fields in ({}, {"deadline_s": 0.2}):
            group = await engine.submit(ask(whole=True, **fields))
            await asyncio.sleep(0.05)
            if not fields:
                group.cancel()
            assert [generation.finish_reason for generation in await asyncio.wait_for(group.all(), 30)] == ["abort"]
        await until(lambda: peer.num_hung_up == 2)
        await engine.close()


async def test_a_long_reply_that_is_wanted_whole_is_taken_in_as_it_comes() -> None:
    async with keeping(as_json(whole(content="x" * 2_000_000))) as keeper:
        engine = RemoteEngine(keeper.url, model="m")
        for _ in range(2):  # with a new connection, and with the same
            assert len((await asyncio.wait_for(answer(engine, ask(whole=True)), 30)).text) == 2_000_000
        await engine.close()
    vectors = [{"index": index, "embedding": [0.5] * 4096} for index in range(100)]
    async with keeping(as_json(json.dumps({"data": vectors, "usage": {"prompt_tokens": 1}}).encode())) as keeper:
        engine = RemoteEngine(keeper.url, model="m")
        assert len((await asyncio.wait_for(engine.embed(["x"] * 100), 30)).vectors) == 100
        await engine.close()


async def test_a_reply_without_end_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "WHOLE_LIMIT_BYTES", 1_000_000)
    async with keeping(as_json(whole(content="x" * 4_000_000))) as keeper:
        engine = RemoteEngine(keeper.url, model="m")
        with pytest.raises(UpstreamFailed, match="more than 1000000 bytes"):
            await answer(engine, ask(whole=True))
        await engine.close()


@asynccontextmanager
async def kept(*later: bytes | None) -> AsyncIterator[tuple[RemoteEngine, list[int]]]:
    """An engine with a free connection, on which requests are met with these; None is silence, and a half reply an end.

    With the numbers of the requests that were hung up on.
    """
    replies = [as_json(whole(content="Hello")), *later]
    hung_up: list[int] = []
    num_open = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_open
        num_open += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            for number, reply in enumerate(replies):
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
                if reply is None:
                    await reader.read()
                    hung_up.append(number)
                    break
                writer.write(reply)
        writer.close()
        num_open -= 1

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        engine = RemoteEngine(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", model="m")
        assert (await answer(engine, ask(whole=True))).text == "Hello"
        yield engine, hung_up
        await until(lambda: engine.stats().num_running == 0)
        await engine.close()
        await until(lambda: num_open == 0)


async def test_a_whole_answer_on_a_free_connection_can_be_given_up() -> None:
    async with kept(None) as (engine, hung_up):
        group = await engine.submit(ask(whole=True))
        group.cancel()
        assert [generation.finish_reason for generation in await asyncio.wait_for(group.all(), 30)] == ["abort"]
        await until(lambda hung_up=hung_up: hung_up == [1])
    async with kept(None) as (engine, hung_up):
        late = await engine.submit(ask(whole=True, deadline_s=0.2))
        assert [generation.finish_reason for generation in await asyncio.wait_for(late.all(), 30)] == ["abort"]
        await until(lambda hung_up=hung_up: hung_up == [1])
    async with kept(None) as (engine, hung_up):
        last = await engine.submit(ask(whole=True))
        await asyncio.sleep(0.05)
        await engine.close()
        assert [generation.finish_reason for generation in await asyncio.wait_for(last.all(), 30)] == ["abort"]
        await until(lambda hung_up=hung_up: hung_up == [1])


async def test_a_whole_answer_on_a_free_connection_is_refused_or_breaks_off() -> None:
    refusal = error("n is odd")[0]
    assert isinstance(refusal, bytes)
    refused = b"HTTP/1.1 400 X\r\ncontent-length: %d\r\n\r\n" % len(refusal) + refusal
    async with kept(refused, as_json(whole(content="Hello")), b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nhalf") as (
        engine,
        _,
    ):
        with pytest.raises(BadRequest, match="n is odd"):
            await answer(engine, ask(whole=True))
        assert (await answer(engine, ask(whole=True))).text == "Hello"
        with pytest.raises(UpstreamFailed, match="broke off"):
            await answer(engine, ask(whole=True))


async def test_the_last_candidate_is_handed_on_when_all_counts_are_final() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 7}
    lines: list[bytes | float] = [
        chat({"content": "a"}), chat({"content": "b"}, index=1), chat({}, finish="stop"), chat({}, index=1, finish="stop"),
        0.2, b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n", DONE,
    ]  # fmt: skip
    async with running(chat__completions=(200, lines)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(n=2))
        known = [group.prompt_tokens async for delta in group if delta.finish_reason]
        assert known == [0, 9], "the first candidate is handed on at once"
        assert group.completion_tokens == 7
        await engine.close()
