"""Tasks of the running server, over its own HTTP: submitted once, followed to the end over breaks, cancelled if nobody waits."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec

from atlas.cli.client import Server, check, headers
from atlas.errors import OperatorError
from atlas.ralph import TaskResult
from atlas.types import Event, Run

TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # a stream that says nothing for so long, not even a ping, is dead
PATIENCE_S = 60.0  # for a server that does not answer; one that restarts is back in seconds
RETRY_S = 0.5
CANCEL_PATIENCE_S = 5.0

OnEvent = Callable[[Event], None]


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says of a task that is closed."""

    id: str
    outcome: str
    reason: str
    result: TaskResult | None = None
    run: Run | None = None


class Tasks:
    """Of one server, for one key."""

    def __init__(self, server: Server, key: str) -> None:
        self._url = server.url
        self._http = httpx.AsyncClient(base_url=server.url, headers=headers(key), timeout=TIMEOUT, verify=server.verify)

    async def __aenter__(self) -> Tasks:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def solve(self, body: dict[str, Any], on_event: OnEvent) -> Closed:
        """Submit, follow, and read the result. Cancelled, it cancels the task.

        Raises:
            OperatorError: the server refuses, or does not answer any more.
        """
        task_id = await self.submit(body)
        try:
            await self.follow(task_id, on_event)
            return await self.read(task_id)
        except asyncio.CancelledError:
            await asyncio.shield(self.cancel(task_id))
            raise

    async def submit(self, body: dict[str, Any]) -> str:
        """Under a key of its own, so that it can be repeated safely if an answer is lost."""
        key = {"idempotency-key": uuid.uuid4().hex}
        response = await self._persist(lambda: self._http.post("/v1/tasks", json=body, headers=key))
        task_id: str = response.json()["id"]
        return task_id

    async def read(self, task_id: str) -> Closed:
        response = await self._persist(lambda: self._http.get(f"/v1/tasks/{task_id}", params={"full": "true"}))
        return msgspec.json.decode(response.content, type=Closed)

    async def receipt(self, task_id: str) -> bytes:
        return (await self._persist(lambda: self._http.get(f"/v1/tasks/{task_id}/receipt"))).content

    async def cancel(self, task_id: str) -> None:
        """Best effort: whoever asks is about to leave."""
        try:
            async with asyncio.timeout(CANCEL_PATIENCE_S):
                await self._http.post(f"/v1/tasks/{task_id}/cancel")
        except (httpx.HTTPError, TimeoutError):
            pass

    async def follow(self, task_id: str, on_event: OnEvent) -> None:
        """Hand on each event, over breaks, until the task is closed."""
        last, heard_s = "0", time.monotonic()
        while True:
            try:
                async for number, name, data in self._events(task_id, last):
                    last, heard_s = number, time.monotonic()
                    if name == "task.closed":
                        return
                    on_event(msgspec.json.decode(data, type=Event))
                heard_s = max(heard_s, time.monotonic() - PATIENCE_S / 2)  # it was there, and ended the stream in order
            except httpx.TransportError as error:
                if time.monotonic() - heard_s > PATIENCE_S:
                    raise self._silent(error, f"; task {task_id} goes on without us") from None
            await asyncio.sleep(RETRY_S)

    async def _events(self, task_id: str, last: str) -> AsyncIterator[tuple[str, str, str]]:
        """(number, name, data) of each event behind `last`, as far as this connection goes."""
        path, behind = f"/v1/tasks/{task_id}/events", {"last-event-id": last}
        async with self._http.stream("GET", path, headers=behind) as response:
            if response.status_code == 503:
                return
            if not response.is_success:
                await response.aread()
                check(response)
            fields: dict[str, str] = {}
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                    continue
                if "id" in fields:
                    yield fields["id"], fields.get("event", ""), fields.get("data", "")
                fields = {}

    async def _persist(self, call: Callable[[], Any]) -> httpx.Response:
        """The answer of a server that may just be starting again."""
        until_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                response: httpx.Response = await call()
                if response.status_code != 503 or time.monotonic() > until_s:
                    check(response)
                    return response
            except httpx.TransportError as error:
                if time.monotonic() > until_s:
                    raise self._silent(error) from None
            await asyncio.sleep(RETRY_S)

    def _silent(self, error: Exception, more: str = "") -> OperatorError:
        return OperatorError(f"{self._url} did not answer for {PATIENCE_S:.0f} s: {str(error) or type(error).__name__}{more}")
