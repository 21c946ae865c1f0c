"""A model server that costs next to nothing: what is left of a proxy's time and CPU is the proxy's own.

`python -m benchmarks.mock_upstream PORT`. Answers POST /v1/chat/completions from prepared bytes, as one JSON object or as
`NUM_CHUNKS` events in one burst; model "idle" sends one event and then nothing for as long as the client stays.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, cast

import uvloop

NUM_CHUNKS = 64
MODELS = ("mock", "idle")
USAGE = {"prompt_tokens": 11, "completion_tokens": NUM_CHUNKS, "total_tokens": 11 + NUM_CHUNKS}


def _json(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "mock", "choices": choices, **more}
    return _chunked(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


ANSWER = _json(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "mock",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "tok " * NUM_CHUNKS}, "finish_reason": "stop"}],
        "usage": USAGE,
    }
)
LIST = _json({"object": "list", "data": [{"id": model, "object": "model", "created": 1, "owned_by": "mock"} for model in MODELS]})
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = _event([{"index": 0, "delta": {"content": "tok "}, "finish_reason": None}])
END = b"".join(
    (
        _event([{"index": 0, "delta": {}, "finish_reason": "stop"}]),
        _event([], usage=USAGE),
        _chunked(b"data: [DONE]\n\n"),
        b"0\r\n\r\n",
    )
)


class Upstream(asyncio.Protocol):
    """One connection; requests come one after another."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._end_of_request()) is not None:
            request, self._received = self._received[:end], self._received[end:]
            self._answer(request)

    def _end_of_request(self) -> int | None:
        """Length of the first whole request."""
        head, mark, _ = self._received.partition(b"\r\n\r\n")
        _, _, after = head.lower().partition(b"content-length:")
        end = len(head) + len(mark) + int(after.split(b"\r\n")[0] or 0)
        return end if mark and len(self._received) >= end else None

    def _answer(self, request: bytes) -> None:
        assert self._transport is not None
        body = request.partition(b"\r\n\r\n")[2].replace(b" ", b"")
        if not body:
            self._transport.write(LIST)
        elif b'"stream":true' not in body:
            self._transport.write(ANSWER)
        elif b'"model":"idle"' in body:
            self._transport.write(HEAD + CHUNK)
        else:
            self._transport.writelines([HEAD, *[CHUNK] * NUM_CHUNKS, END])


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
