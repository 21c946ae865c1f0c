"""An OpenAI-compatible server that says what a test tells it to say, word for word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from atlas.engine import RemoteEngine
from atlas.types import Delta, Generation, Message, Prompt


@dataclass
class Peer:
    """An HTTP server that says what a test tells it to say, word for word. A float in a reply is a pause in seconds."""

    replies: dict[str, tuple[int, list[bytes | float]]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    in_turn: list[list[bytes | float]] = field(default_factory=list)  # replies to the first requests, one each, if they differ
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    num_sent: int = 0  # pieces, of all replies
    num_hung_up: int = 0  # connections the client closed before the reply was over
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path = head[0].split()[1]
        self.requests.append((path, headers, json.loads(body) if body else None))
        status, pieces = self.replies.get(path, (404, [b'{"detail": "Not Found"}']))
        if self.in_turn:
            pieces = self.in_turn.pop(0)
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        writer.write(f"HTTP/1.1 {status} X\r\nconnection: close\r\n{extra}\r\n".encode())
        try:
            await self.say(pieces, reader, writer)
        except ConnectionError:
            self.num_hung_up += 1
        writer.close()

    async def say(self, pieces: list[bytes | float], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.write(piece)
                await writer.drain()
                self.num_sent += 1
            elif await self.is_hung_up(reader, piece):
                raise ConnectionResetError

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


def error(message: str, **fields: Any) -> list[bytes | float]:
    return [json.dumps({"error": {"message": message, "type": "x", "param": None, **fields}}).encode()]


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


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  the peer is a plain counter
            await asyncio.sleep(0.01)


SLOW: list[bytes | float] = [chat({"content": "a"}), chat({"content": "b"}, index=1), 30.0]
