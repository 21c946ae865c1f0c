"""Keys that change while two hundred of their requests stream through a server as it is started by a user."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx

from tests.cli.conftest import RunningServer, launch_server

__all__ = ["launch_server"]  # a fixture

NUM_STREAMS = 200
GRACE_S = 2.0
WORDS = "one two three " * 20
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
        """Two hundred streams run inside, and all of them come to their own end."""
        begun = [asyncio.Event() for _ in range(NUM_STREAMS)]
        streams = [asyncio.create_task(self.stream(key, event)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        assert not any(stream.done() for stream in streams)
        yield
        assert not any(stream.done() for stream in streams), "they ended too early for this test to show anything"
        assert set(await asyncio.gather(*streams)) == {WORDS.strip()}

    async def stream(self, key: str, begun: asyncio.Event) -> str:
        received = ""
        async with self.client.stream("POST", "/v1/chat/completions", headers=bearer(key), json=STREAM) as reply:
            assert reply.status_code == 200
            async for line in reply.aiter_lines():
                begun.set()
                received += line
        assert "[DONE]" in received
        return "".join(re.findall(r'"content":"([^"]*)"', received)).strip()


@asynccontextmanager
async def team_at(server: RunningServer) -> AsyncIterator[Team]:
    limits = httpx.Limits(max_connections=None)
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
            assert GRACE_S - 0.5 < time.monotonic() - rotated_s < GRACE_S + 2
            assert await team.statuses(old["key"]) == {401}
            assert await team.statuses(new["key"]) == {200}
        async with team.streaming(new["key"]):
            await team.call("DELETE", f"/keys/{new['id']}")
            assert await team.statuses(new["key"]) == {401}
        assert f'atlas_usage_rows_total{{state="completed"}} {2 * NUM_STREAMS}.0' in (await team.client.get("/metrics")).text
