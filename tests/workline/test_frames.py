"""Frames as they lie on the wire, against another implementation of WebSocket, and against those who mean no good."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from atlas.errors import BudgetExhausted, ContextLengthExceeded, Disconnected, EngineFailed, Unavailable
from atlas.ralph.dial import remote
from atlas.workline import (
    MESSAGE_LIMIT_BYTES,
    BadFrame,
    Failed,
    LengthFrames,
    WebSocketFrames,
    accepted,
    error_of,
    failed,
    new_key,
)

SIZES = (0, 1, 125, 126, 127, 65535, 65536, 3_000_000)
Make = Callable[[asyncio.StreamReader, asyncio.StreamWriter], LengthFrames | WebSocketFrames]


@asynccontextmanager
async def pair(make_client: Make, make_server: Make) -> AsyncIterator[tuple[LengthFrames | WebSocketFrames, ...]]:
    """Both ends of one connection."""
    arrived: asyncio.Queue[LengthFrames | WebSocketFrames] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.put_nowait(make_server(reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = make_client(*await asyncio.open_connection(*server.sockets[0].getsockname()))
    other = await arrived.get()
    yield client, other
    client.close()
    other.close()
    server.close()


def client_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> WebSocketFrames:
    return WebSocketFrames(reader, writer, is_client=True)


def server_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> WebSocketFrames:
    return WebSocketFrames(reader, writer, is_client=False)


@pytest.mark.parametrize(
    ("client", "server"), [(LengthFrames, LengthFrames), (client_of, server_of)], ids=["length", "websocket"]
)
async def test_messages_of_any_size_arrive_whole_in_both_directions(client: Make, server: Make) -> None:
    messages = [os.urandom(size) for size in SIZES]
    async with pair(client, server) as (one, other):
        for sender, receiver in ((one, other), (other, one)):
            sending = asyncio.gather(*(sender.write(message) for message in messages))
            assert [await receiver.read() for _ in messages] == messages
            await sending
        one.close()
        assert await other.read() is None


@pytest.mark.parametrize(
    ("client", "server"), [(LengthFrames, LengthFrames), (client_of, server_of)], ids=["length", "websocket"]
)
async def test_nothing_larger_than_the_protocol_knows_is_sent(client: Make, server: Make) -> None:
    async with pair(client, server) as (one, _):
        with pytest.raises(BadFrame, match="are the most"):
            await one.write(bytes(MESSAGE_LIMIT_BYTES + 1))


async def test_the_client_is_understood_by_another_server_which_pings_it() -> None:
    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        await socket.ping(b"are you there")
        async for message in socket:
            await socket.send_bytes(message.data[::-1])
        return socket

    app = web.Application()
    app.router.add_get("/internal/worker", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]  # asyncio's Server has them
    frames = await remote(f"http://127.0.0.1:{port}", "any key")()
    for size in SIZES:
        message = os.urandom(size)
        await frames.write(message)
        assert await frames.read() == message[::-1]
    frames.close()
    await runner.cleanup()


async def test_the_server_understands_another_client() -> None:
    assert accepted("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3

    async def with_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        [line] = [one for one in head.decode("latin-1").split("\r\n") if one.lower().startswith("sec-websocket-key")]
        answer = accepted(line.partition(": ")[2])
        lines = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
        writer.write("\r\n".join((*lines, f"Sec-WebSocket-Accept: {answer}", "", "")).encode())
        frames = WebSocketFrames(reader, writer, is_client=False)
        while (message := await frames.read()) is not None:
            await frames.write(message[::-1])
        frames.close()

    server = await asyncio.start_server(with_answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"http://{host}:{port}/", max_msg_size=0) as socket:
        for size in SIZES:
            message = os.urandom(size)
            await socket.ping(b"still there")
            await socket.send_bytes(message)
            assert await socket.receive_bytes() == message[::-1]
    server.close()


def frame(first: int, payload: bytes, *, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else payload
    return bytes([first, (0x80 if mask else 0) | len(payload)]) + mask + masked


async def test_fragments_with_a_ping_between_them_are_one_message() -> None:
    async with pair(LengthFrames, server_of) as (raw, server):
        assert isinstance(raw, LengthFrames)
        raw._writer.write(frame(0x02, b"one ") + frame(0x89, b"ping") + frame(0x00, b"two ") + frame(0x80, b"three"))
        assert await server.read() == b"one two three"
        assert await raw._reader.readexactly(6) == b"\x8a\x04ping"
        raw._writer.write(frame(0x88, b"\x03\xe8"))
        assert await server.read() is None
        assert await raw._reader.readexactly(4) == b"\x88\x02\x03\xe8"


@pytest.mark.parametrize(
    "data",
    [
        frame(0x82, b"unmasked", mask=b""),
        frame(0x81, b"a text"),
        frame(0xC2, b"an extension"),
        frame(0x80, b"nothing is continued"),
        frame(0x02, b"begun") + frame(0x82, b"and begun again"),
        frame(0x09, b"a ping in fragments"),
        b"\x89\xff" + bytes(16),  # a long ping
        b"\x82\xff" + (MESSAGE_LIMIT_BYTES + 1).to_bytes(8, "big"),
        b"\x82\xff" + b"\xff" * 8,
    ],
)
async def test_what_is_no_frame_of_a_worker_ends_the_connection(data: bytes) -> None:
    async with pair(LengthFrames, server_of) as (raw, server):
        assert isinstance(raw, LengthFrames)
        raw._writer.write(data)
        with pytest.raises(BadFrame):
            await asyncio.wait_for(server.read(), 20)


async def test_fragments_together_are_no_larger_than_one_message_may_be() -> None:
    async with pair(LengthFrames, server_of) as (raw, server):
        assert isinstance(raw, LengthFrames)
        piece = b"\x00\xff" + (1 << 23).to_bytes(8, "big") + bytes(4) + bytes(1 << 23)
        raw._writer.write(b"\x02" + piece[1:])
        reading = asyncio.create_task(server.read())
        for _ in range(MESSAGE_LIMIT_BYTES >> 23):
            raw._writer.write(piece)
        with pytest.raises(BadFrame, match="are the most"):
            await asyncio.wait_for(reading, 60)


async def test_a_length_beyond_the_limit_is_refused_before_anything_is_read() -> None:
    async with pair(LengthFrames, LengthFrames) as (raw, server):
        assert isinstance(raw, LengthFrames)
        raw._writer.write((MESSAGE_LIMIT_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(BadFrame):
            await asyncio.wait_for(server.read(), 20)


@given(st.text(max_size=50), st.floats(min_value=0, max_value=1e6) | st.none())
def test_an_error_is_the_same_at_the_other_end(message: str, retry_after_s: float | None) -> None:
    for kind in (ContextLengthExceeded, BudgetExhausted, Disconnected, EngineFailed):
        error = error_of(failed(7, kind(message, param="n", retry_after_s=retry_after_s)))
        assert type(error) is kind
        assert (error.message, error.param, error.retry_after_s) == (message, "n", retry_after_s)


def test_an_error_of_a_room_that_shares_a_code_is_not_taken_for_one_of_all() -> None:
    class OfARoom(Disconnected):
        """A leaf elsewhere, under the same code."""

    assert type(error_of(failed(1, OfARoom("gone")))) is Disconnected


def test_an_error_that_this_version_does_not_know_is_a_passing_one_of_ours() -> None:
    assert isinstance(error_of(Failed(id=1, code="from_the_future", message="?")), Unavailable)
    assert len({new_key() for _ in range(100)}) == 100
