"""How a remote engine's answers end: cancelled, late, refused, broken off, cut at their allowance."""

from __future__ import annotations

import asyncio
import time

import pytest

from atlas.engine.remote import RemoteEngine
from atlas.errors import (
    AtlasError,
    BadRequest,
    ContextLengthExceeded,
    EngineOverloaded,
    EngineUnavailable,
    ModelNotFound,
    UpstreamFailed,
)
from atlas.types import Sampling
from tests.engine.peer import DONE, SLOW, USAGE, answer, ask, chat, error, event, running, until


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
        assert time.monotonic() - started_s < 10
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
        await asyncio.wait_for(hung_up.wait(), 30)
        with pytest.raises(asyncio.CancelledError):
            await submitting
        await engine.close()


async def test_giving_up_on_a_half_told_refusal_closes_the_connection() -> None:
    slow: list[bytes | float] = [b"{", 30.0]
    async with running(chat__completions=(500, slow), embeddings=(200, slow)) as peer:
        engine = RemoteEngine(peer.url, model="m")
        for attempt in (engine.submit(ask()), engine.embed(["x"])):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(attempt, 0.2)
        await until(lambda: peer.num_hung_up == 2)
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
        with pytest.raises(UpstreamFailed, match=r"broke off: nothing came for 0\.2 s"):
            await answer(engine, ask(n=2))
        await engine.close()


def words(count: int, *, size: int = 1) -> list[bytes | float]:
    return [chat({"content": "x" * size}) for _ in range(count)]


async def test_a_parked_answer_is_not_read_so_that_the_peer_must_wait() -> None:
    count, size = 400, 65536
    async with running(chat__completions=(200, [*words(count, size=size), chat({}, finish="length"), DONE])) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(allowance_tokens=3))
        assert await group.reached(3)
        await asyncio.sleep(0.3)
        assert group.num_generated == 3
        assert peer.num_sent < count, "buffers hold some, not all of 26 MB"
        group.allow(None)
        (generation,) = await group.all()
        assert len(generation.text) == count * size
        await engine.close()


@pytest.mark.parametrize("is_ended", [False, True])
async def test_an_answer_of_all_its_tokens_waits_for_its_end_alone(is_ended: bool) -> None:
    """As llama-server sends it: a chunk for each token, then the reason and the usage."""
    async with running(chat__completions=(200, [*words(4), 0.1, chat({}, finish="length"), USAGE, DONE])) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(max_tokens=4, allowance_tokens=4))
        if is_ended:
            group.end()
        (generation,) = await asyncio.wait_for(group.all(), 10)
        assert (generation.text, generation.finish_reason) == ("xxxx", "length")
        assert group.prompt_tokens == 9
        await engine.close()


async def test_a_peer_that_says_more_than_it_was_asked_for_waits_too() -> None:
    async with running(chat__completions=(200, [*words(9), 30.0])) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(max_tokens=4, allowance_tokens=4))
        assert await asyncio.wait_for(group.reached(5), 10)
        await asyncio.sleep(0.1)
        assert group.num_generated == 5
        group.cancel()
        await engine.close()


async def test_the_end_of_an_allowance_hangs_up() -> None:
    async with running(chat__completions=(200, [*words(5), 30.0])) as peer:
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(allowance_tokens=2))
        assert await group.reached(2)
        group.end("enough")
        (generation,) = await group.all()
        assert (generation.text, generation.finish_reason, generation.num_tokens) == ("xx", "length", 2)
        await until(lambda: peer.num_hung_up == 1 and engine.stats().num_running == 0)
        assert engine.stats().generated_tokens == 2
        await engine.close()


async def test_a_failure_of_one_connection_ends_a_parked_one() -> None:
    async with running(chat__completions=(200, [])) as peer:
        peer.in_turn = [[*words(5), 30.0], [chat({"content": "a"}), 0.3, event({"error": "gone"})]]
        engine = RemoteEngine(peer.url, model="m")
        group = await engine.submit(ask(n=2, allowance_tokens=2, sampling=(Sampling(seed=1), Sampling(seed=2))))
        with pytest.raises(UpstreamFailed, match="gone"):
            await asyncio.wait_for(group.all(), 30)
        group.end()
        await until(lambda: engine.stats().num_running == 0)
        await engine.close()
