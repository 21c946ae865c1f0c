"""How events travel: those that come together are sent together, and none waits for another."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from urllib.parse import urlsplit

from tests.gateway.conftest import KEY, MODEL, Running, Scripted

NUM_WORDS = 30
ANSWER = " ".join(map(str, range(NUM_WORDS)))


def chunks_of(server: Running, *, n: int) -> list[bytes]:
    """The chunks of n streamed answers as they were sent."""
    address = urlsplit(server.url)
    body = json.dumps({"model": MODEL, "prompt": "x", "stream": True, "n": n})
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    with closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)) as connection:
        connection.request("POST", "/v1/completions", body, headers)
        reply = connection.getresponse()
        assert (reply.status, reply.chunked) == (200, True)
        found = []
        while size := int(reply.fp.readline(), 16):
            found.append(reply.fp.read(size))
            assert reply.fp.readline() == b"\r\n"
        return found


def texts_of(chunks: list[bytes], *, n: int) -> list[str]:
    blocks = b"".join(chunks).decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    texts = [""] * n
    for block in blocks[:-2]:
        (choice,) = json.loads(block.removeprefix("data: "))["choices"]
        texts[choice["index"]] += choice["text"]
    return texts


def test_events_that_come_together_are_sent_together(scripted: Scripted) -> None:
    chunks = chunks_of(scripted([ANSWER], delay_s=0.02), n=10)
    assert texts_of(chunks, n=10) == [ANSWER] * 10
    num_events = sum(chunk.count(b"data: {") for chunk in chunks)
    assert num_events >= 10 * NUM_WORDS
    assert len(chunks) < num_events / 3


def test_an_event_does_not_wait_for_the_next(scripted: Scripted) -> None:
    chunks = chunks_of(scripted([ANSWER], delay_s=0.02), n=1)
    assert texts_of(chunks, n=1) == [ANSWER]
    assert len(chunks) >= NUM_WORDS - 1
    assert chunks[-1].endswith(b"data: [DONE]\n\n")
