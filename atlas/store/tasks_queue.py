"""The part of the journal that lives in Redis: who is next, leases, and streams of events.

Nothing here is the truth: the ledger is, and whatever differs is put right from it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from atlas.store.journal_values import DAY_S, Delivery, Task
from atlas.store.live_trust import Script, TrustedRedis
from atlas.store.live_values import Argument, Caller, Silent
from atlas.store.tasks_refill import Refill

MAX_EVENTS = 1000  # kept per task; the oldest go first (chosen)
EVENT_INLINE_BYTES = 4096  # so that a stream takes 4 MB at most (chosen)
KEEP_OPEN_S = round(2 * DAY_S)  # a task that says nothing for so long has lost its events
KEEP_CLOSED_S = 900  # for those who reconnect (chosen); what was done is in the result
EVENT_PAGE = 100
COMPLAINT = "tasks cannot be queued or handed out now; try again in a moment"
ROOMY = " flags=allow-oom"  # for what frees memory, or must go on when there is none


class Next(NamedTuple):
    """The next delivery, or how long there will be none if nothing is submitted; `wait_s` None: nothing is delayed."""

    delivery: Delivery | None
    wait_s: float | None = None


class Beat(NamedTuple):
    """Whether the delivery is to stop, and whether its worker was heard of for the first time."""

    is_cancelled: bool
    is_first: bool


class Entry(NamedTuple):
    """An event as it lies in the stream; `body` is the name of a blob if `is_blob`."""

    number: int
    at: float
    body: bytes
    is_blob: bool


class NewEvent(NamedTuple):
    """An event on its way into the stream; `body` is the name of a blob if `is_blob`."""

    body: bytes
    is_blob: bool = False


class TaskQueue:
    """The queue under one namespace, for one event loop. Every method raises LimitsUnavailable while Redis cannot be used."""

    def __init__(
        self,
        redis: Caller,
        *,
        source: Callable[[], Sequence[Task]],
        on_look: Callable[[], Awaitable[None]],
        namespace: str,
        lease_s: float,
    ) -> None:
        self._prefix = f"{namespace}:tasks:"
        self._lease_ms = round(lease_s * 1000)
        self._sync = self._script("sync")
        self._lease = self._script("lease")
        self._beat = self._script("beat")
        self._expired = self._script("expired")
        self._event = self._script("event", flags="")
        self._refill = Refill(redis, prefix=self._prefix, lease_s=lease_s)
        scripts = (self._sync, self._lease, self._beat, self._expired, self._event)
        self._redis = TrustedRedis(
            redis, builder=self._refill, scripts=scripts, source=source, on_look=on_look, complaint=COMPLAINT
        )

    @property
    def trouble(self) -> str:
        """Why Redis cannot be used, for the operator; empty while it can."""
        return self._redis.trouble

    async def until_ready(self) -> None:
        await self._redis.until_ready()

    async def refill(self, truth: Sequence[Task]) -> None:
        """Write everything anew from what the ledger says."""
        await self._redis.rebuild(truth)

    async def sync(self, task: Task) -> None:
        """Make Redis agree with the ledger about one task."""
        await self._run(self._sync, *self._refill.sync_arguments(task))

    async def forget(self, task_id: str) -> None:
        """Drop a task that the ledger does not have."""
        await self._run(self._sync, task_id, "closed", "", 0, "", 0, 0, 0, 0, 0)

    async def lease(self, kind: str) -> Next:
        """Begin the next delivery, if one is due."""
        word, *rest = (await self._run(self._lease, kind, self._lease_ms)).split()
        if word == "task":
            return Next(Delivery(task_id=rest[0], number=int(rest[1])))
        return Next(None, None if rest[0] == "-1" else int(rest[0]) / 1000)

    async def beat(self, delivery: Delivery) -> Beat | None:
        """Prolong a lease; None: Redis knows of no such lease."""
        reply = await self._run(self._beat, delivery.task_id, delivery.number, self._lease_ms)
        if reply == "unknown":
            return None
        word, first = reply.split()
        return Beat(word == "cancelled", first == "1")

    async def expired(self) -> list[Delivery]:
        """Deliveries whose lease has ended, a hundred at most; they are named until `sync` has told what became of them."""
        words = (await self._run(self._expired)).split()
        return [Delivery(task_id=words[at], number=int(words[at + 1])) for at in range(0, len(words), 2)]

    async def put_events(self, delivery: Delivery, events: Sequence[NewEvent]) -> int | None:
        """Number of the last new event; None: Redis knows of no such lease."""
        arguments = [part for event in events for part in ("blob" if event.is_blob else "body", event.body)]
        reply = await self._run(self._event, delivery.task_id, delivery.number, *arguments)
        return None if reply == "unknown" else int(reply)

    async def events(self, task_id: str, *, after: int) -> list[Entry]:
        """The next page of events; empty at the end, or if they are gone."""
        stream = f"{self._prefix}e:{task_id}"
        rows = await self._redis.call("XRANGE", stream, f"({after}-{2**64 - 1}", "+", "COUNT", EVENT_PAGE)
        return [_entry(number, fields) for number, fields in rows]

    async def is_open(self, task_id: str) -> bool:
        """Whether Redis has the task among those that are not closed."""
        return bool(await self._redis.call("EXISTS", f"{self._prefix}t:{task_id}"))

    async def stop(self) -> None:
        """Look after Redis no longer."""
        await self._redis.stop()

    async def close(self) -> None:
        await self._redis.close()

    async def _run(self, script: Script, *arguments: Argument) -> str:
        try:
            return (await self._redis.run(script, *arguments)).decode()
        except Silent:
            raise self._redis.unavailable() from None

    def _script(self, name: str, *, flags: str = ROOMY) -> Script:
        constants: dict[str, str | int] = {"PREFIX": self._prefix, "MAX_EVENTS": MAX_EVENTS}
        constants |= {"KEEP_OPEN_S": KEEP_OPEN_S, "KEEP_CLOSED_S": KEEP_CLOSED_S}
        return Script(f"tasks_{name}", shared="tasks_common", constants=constants, flags=flags)


def _entry(number: bytes, fields: list[bytes]) -> Entry:
    _, at_ms, kind, body = fields
    return Entry(int(number.split(b"-")[0]), int(at_ms) / 1000, body, kind == b"blob")
