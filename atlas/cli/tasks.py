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


class ClosedTask(msgspec.Struct, frozen=True):
    id: str
    outcome: str
    reason: str


class ClosedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The last event of a task."""

    task: ClosedTask
    result: TaskResult | None
    run: Run | None

    @property
    def closed(self) -> Closed:
        task = self.task
        return Closed(id=task.id, outcome=task.outcome, reason=task.reason, result=self.result, run=self.run)


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
        """Submit, and hand on each event until the task is closed, over breaks. Cancelled, it cancels the task.

        Raises:
            OperatorError: the server refuses, or does not answer any more.
        """
        following = _Following(body, on_event)
        try:
            while following.closed is None:
                await self._follow(following)
        except asyncio.CancelledError:
            if following.task_id:
                await asyncio.shield(self.cancel(following.task_id))
            raise
        return following.closed

    async def _follow(self, following: _Following) -> None:
        """As far as one connection goes; waits a while if that was not to the end."""
        try:
            async with self._http.stream(**following.request()) as response:
                if response.status_code != 503 or following.silent_s > PATIENCE_S:
                    await following.begin(response)
                    async for event in _events(response):
                        following.heard(*event)
        except httpx.TransportError as error:
            if following.silent_s > PATIENCE_S:
                raise self._silent(error, following.task_id and f"; task {following.task_id} goes on without us") from None
        if following.closed is None:
            await asyncio.sleep(RETRY_S)

    async def receipt(self, task_id: str) -> bytes:
        return (await self._persist(lambda: self._http.get(f"/v1/tasks/{task_id}/receipt"))).content

    async def cancel(self, task_id: str) -> None:
        """Best effort: whoever asks is about to leave."""
        try:
            async with asyncio.timeout(CANCEL_PATIENCE_S):
                await self._http.post(f"/v1/tasks/{task_id}/cancel")
        except (httpx.HTTPError, TimeoutError):
            pass

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


class _Following:
    """A task that is submitted and followed, over as many connections as it takes.

    It is submitted under a key of its own, so that this can be repeated safely if the answer is lost.
    """

    def __init__(self, body: dict[str, Any], on_event: OnEvent) -> None:
        self._body, self._on_event = body | {"stream": True}, on_event
        self._key = uuid.uuid4().hex
        self._last = "0"
        self._heard_s = time.monotonic()
        self.task_id = ""
        self.closed: Closed | None = None

    @property
    def silent_s(self) -> float:
        """How long nothing has been heard of it."""
        return time.monotonic() - self._heard_s

    def request(self) -> dict[str, Any]:
        """What httpx is to send next."""
        full = {"full": "true"}
        if not self.task_id:
            key = {"idempotency-key": self._key}
            return {"method": "POST", "url": "/v1/tasks", "params": full, "json": self._body, "headers": key}
        behind = {"last-event-id": self._last}
        return {"method": "GET", "url": f"/v1/tasks/{self.task_id}/events", "params": full, "headers": behind}

    async def begin(self, response: httpx.Response) -> None:
        """Raises OperatorError: the server refuses."""
        if not response.is_success:
            await response.aread()
        check(response)
        self.task_id = self.task_id or response.headers["x-atlas-task-id"]
        self._heard_s = max(self._heard_s, time.monotonic() - PATIENCE_S / 2)  # it is there

    def heard(self, number: str, name: str, data: str) -> None:
        self._last, self._heard_s = number, time.monotonic()
        if name == "task.closed":
            self.closed = msgspec.json.decode(data, type=ClosedEvent).closed
        else:
            self._on_event(msgspec.json.decode(data, type=Event))


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, str, str]]:
    """(number, name, data) of each event of a stream."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
            continue
        if "id" in fields:
            yield fields["id"], fields.get("event", ""), fields.get("data", "")
        fields = {}
