"""Streamed completions over plain sockets: as little of the client as can be in what is measured."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchmarks.peers import KEY, Peer

SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "min_p": 0.0}


class Stream(NamedTuple):
    """When the pieces of one answer arrived, on the monotonic clock."""

    begun_s: float
    pieces_s: list[float]

    @property
    def first_s(self) -> float:
        return self.pieces_s[0] - self.begun_s


async def streamed(peer: Peer, prompt: str, *, max_tokens: int, begun: asyncio.Event | None = None, **more: Any) -> Stream:
    """One streamed completion, to its end; `begun` is set at its first piece.

    Raises:
        SystemExit: it was refused, or ended before `max_tokens`: what is cheap would flatter.
    """
    body = {"model": peer.model, "prompt": prompt, "max_tokens": max_tokens, "stream": True, "cache_prompt": True, **more}
    begun_s = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(peer.url).port)
    writer.write(_request(body))
    pieces_s, tail = [], b""
    while chunk := await reader.read(65536):
        pieces_s += [time.perf_counter()] * chunk.count(b"data: {")
        if begun is not None and pieces_s:
            begun.set()
        tail = (tail + chunk)[-2000:]
    writer.close()
    if b'"length"' not in tail:
        raise SystemExit(f"{peer.name} did not answer in full: {tail.decode(errors='replace')}")
    return Stream(begun_s, pieces_s)


def _request(body: Mapping[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\nauthorization: Bearer {KEY}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data
