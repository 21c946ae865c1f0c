"""Keys that change while two hundred of their requests stream through a server as it is started by a user."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.cli.conftest import RunningServer, launch_server

__all__ = ["launch_server"]  # a fixture

NUM_STREAMS = 200
GRACE_S = 2.0
WORDS = "one two three " * 1000  # more than anybody waits for
NUM_MORE = 5
STREAM = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


class Team:
    """A server, its owner's program, and who streams."""

    def __init__(self, server: RunningServer, client: httpx.AsyncClient) -> None:
        self.server, self.client = server, client
        self.owner: dict[str, str] = {}

    async def set_up(self) -> None:
        found = re.search(r"setup\?token=(\S+)", self.server.stderr.read_text())
        assert found
        account = {"token": found[1], "username": "ada", "email": "ada@example.org", "password": "correct horse battery"}
        reply = await self.client.post("/api/auth/register", json=account)
        self.owner = bearer(reply.json()["access_token"])

    async def call(self, method: str, path: str, **body: object) -> dict[str, str]:
        reply = await self.client.request(method, f"/api{path}", headers=self.owner, json=body)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    async def status(self, key: str) -> int:
        """Of a request with this key."""
        return (await self.client.get("/v1/models", headers=bearer(key))).status_code

    async def status_after(self, key: str, now: int) -> int:
        """The first that is another."""
        while (status := await self.status(key)) == now:  # each asks the server anew
            pass
        return status

    async def statuses(self, key: str) -> set[int]:
        return set(await asyncio.gather(*(self.status(key) for _ in range(20))))

    @asynccontextmanager
    async def streaming(self, key: str) -> AsyncIterator[None]:
        """Two hundred streams run inside, and all of them go on after it."""
        begun = [asyncio.Event() for _ in range(NUM_STREAMS)]
        may_leave = asyncio.Event()
        streams = [asyncio.create_task(self.stream(key, event, may_leave)) for event in begun]
        await until_begun(streams, begun)
        yield
        may_leave.set()
        await asyncio.gather(*streams)

    async def stream(self, key: str, begun: asyncio.Event, may_leave: asyncio.Event) -> None:
        """Read; from when it may leave on, a few chunks more."""
        num_more = 0
        async with self.client.stream("POST", "/v1/chat/completions", headers=bearer(key), json=STREAM) as reply:
            assert reply.status_code == 200
            async for line in reply.aiter_lines():
                begun.set()
                num_more += may_leave.is_set() and '"content":"' in line
                if num_more == NUM_MORE:
                    return
        raise AssertionError("the stream was cut")

    async def until_aborted(self, num_streams: int) -> None:
        """What the server does after a client has left needs a moment."""
        wanted = f'atlas_usage_rows_total{{state="aborted"}} {num_streams}.0'
        async with asyncio.timeout(30):
            while wanted not in (await self.client.get("/metrics")).text:  # each asks the server anew
                pass


async def until_begun(streams: list[asyncio.Task[None]], begun: list[asyncio.Event]) -> None:
    """Wait until all have begun; one that failed instead says why."""
    all_begun = asyncio.gather(*(event.wait() for event in begun))
    waited: list[asyncio.Future[Any]] = [all_begun, *streams]
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    for stream in streams:
        if stream.done():
            stream.result()
    await all_begun


@asynccontextmanager
async def team_at(server: RunningServer) -> AsyncIterator[Team]:
    # a kept connection may be closed by the server just when it is used again
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        team = Team(server, client)
        await team.set_up()
        yield team


async def test_keys_are_rotated_and_revoked_under_running_streams(launch_server: Callable[..., RunningServer]) -> None:
    server = launch_server("queue.max_running=400", SCRIPTED_REPLY=WORDS, SCRIPTED_DELAY_S="0.15")
    server.wait_ready()
    async with team_at(server) as team:
        old = await team.call("POST", "/keys", name="laptop")
        async with team.streaming(old["key"]):
            new = await team.call("POST", f"/keys/{old['id']}/rotate", grace_s=GRACE_S)
            rotated_s = time.monotonic()
            assert await team.statuses(new["key"]) == {200}
            assert await team.status_after(old["key"], 200) == 401
            assert GRACE_S - 0.5 < time.monotonic() - rotated_s < GRACE_S + 30
            assert await team.statuses(old["key"]) == {401}
            assert await team.statuses(new["key"]) == {200}
        async with team.streaming(new["key"]):
            await team.call("DELETE", f"/keys/{new['id']}")
            assert await team.statuses(new["key"]) == {401}
        await team.until_aborted(2 * NUM_STREAMS)
