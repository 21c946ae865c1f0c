"""Clients that vanish, clients that do not read, and a machine without memory: what was held for them is free again."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from atlas.types import Usage
from tests import ggufs
from tests.e2e.conftest import KEY, Running
from tests.e2e.faults import ledger_rows
from tests.e2e.test_soak import wait_idle
from tests.ledgers import server_environ

LIMITS = {"ATLAS_LIMITS_CONCURRENCY": "80", "ATLAS_LIMITS_REQUESTS_PER_MINUTE": "100000"}
STORM = 60
HEADROOM_BYTES = 8 * 1024 * 1024


def completion(**more: object) -> dict[str, object]:
    return {"model": "calm", "prompt": "A storm", "max_tokens": 400, "stream": True, **more}


def request_bytes(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {KEY}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


async def vanish(server: Running, rng: random.Random) -> None:
    """Ask for something, and hang up: at once, in mid-answer, or while the others are still queued before it."""
    patience_s, is_streamed = rng.choice((0.0, 0.05, 0.3, 1.0)) * rng.random(), rng.random() < 0.7
    body = completion(stream=is_streamed, n=rng.choice((1, 1, 3)), prompt="x" * rng.randrange(1, 300))
    _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port)
    writer.write(request_bytes(body))
    await writer.drain()
    await asyncio.sleep(patience_s)
    writer.transport.abort()


def rows_of(server: Running) -> dict[str, Usage]:
    """Every usage row, once it has stopped."""
    return ledger_rows(server.home, server_environ(server.home).get("ATLAS_LEDGER_URL", ""))


def assert_nothing_is_held(server: Running) -> None:
    wait_idle(server)
    assert server.metric("atlas_kv_cells", state="live") == 0
    assert server.metric("atlas_requests_waiting") == 0


async def full_house(server: Running) -> list[int]:
    """As many requests at once as the key may have under way: none of them is refused if no earlier one is still counted."""
    body = completion(stream=False, max_tokens=2)
    async with httpx.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=120) as client:
        answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(80)))
    return [answer.status_code for answer in answers]


def test_a_storm_of_clients_that_hang_up_leaves_nothing_behind(serve: Callable[..., Running]) -> None:
    server = serve(ggufs.tiny_calm(), **LIMITS)
    rng = random.Random(5)

    async def storm() -> None:
        for _ in range(3):
            await asyncio.gather(*(vanish(server, rng) for _ in range(STORM)))

    asyncio.run(storm())
    assert server.metric("atlas_engine_generated_tokens_total") > 100
    assert_nothing_is_held(server)
    assert asyncio.run(full_house(server)) == [200] * 80
    server.stop()
    rows = rows_of(server)
    states = Counter(row.state for row in rows.values())
    assert states["running"] == 0
    assert states["aborted"] > STORM, states
    assert states["completed"] >= 80


def test_who_does_not_read_holds_up_nobody_and_is_let_go(serve: Callable[..., Running]) -> None:
    server = serve(ggufs.tiny_calm(), **LIMITS)
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    lazy.connect(("127.0.0.1", urlsplit(server.url).port or 0))
    lazy.sendall(request_bytes(completion(max_tokens=3000, logprobs=5)))
    deadline_s = time.monotonic() + 60
    while server.metric("atlas_engine_generated_tokens_total") < 200:
        assert time.monotonic() < deadline_s
    answer = server.post("/v1/completions", completion(stream=False, max_tokens=20))
    assert answer.json()["usage"]["completion_tokens"] == 20
    lazy.close()
    assert_nothing_is_held(server)


def test_out_of_memory_is_a_restart_and_no_lost_budget(serve: Callable[..., Running], tmp_path: Path) -> None:
    """The process may hardly grow any more, and is asked for what makes it: it refuses, or ends and another one answers."""
    server = serve(ggufs.tiny_calm(), **LIMITS, ATLAS_ENGINE_HOST_CACHE_TOKENS="0")
    dying = server.serving_pid
    size_bytes = int(Path(f"/proc/{dying}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(dying, resource.RLIMIT_AS, (size_bytes + HEADROOM_BYTES, resource.RLIM_INFINITY))

    async def press() -> None:
        async with httpx.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
            asked = (client.post("/v1/completions", json=completion(stream=False, n=8, logprobs=5)) for _ in range(60))
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(press())
    deadline_s = time.monotonic() + 90
    while httpx.get(f"{server.url}/readyz").status_code != 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    if server.serving_pid == dying:  # it has refused what it had no memory for
        resource.prlimit(dying, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert_nothing_is_held(server)
    assert asyncio.run(full_house(server)) == [200] * 80
    server.stop()
    assert "running" not in {row.state for row in rows_of(server).values()}
