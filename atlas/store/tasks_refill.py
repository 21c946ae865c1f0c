"""Makes the queue of tasks again from the ledger, in a Redis that may hold none, an old one or some of it.

Tasks that wait are put where they belong. A task that a worker has gets a fresh lease, since its worker may be well and only the
lease be lost: it goes on if it is heard of in time, and is taken over if not. Virtual times begin anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

from atlas.store.journal_values import Task
from atlas.store.live_rebuild import Command, scan, send
from atlas.store.live_values import Argument, Caller


class Refill:
    """Writes the queue under `prefix`; nothing may be handed out meanwhile. `mark` as in Builder."""

    def __init__(self, redis: Caller, *, prefix: str, lease_s: float, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._prefix = prefix
        self._lease_s = lease_s
        self._clock = clock
        self.mark = f"{prefix}ready"

    async def run(self, truth: Sequence[Task], *, run_id: bytes) -> None:
        """Write everything, the mark last. Streams of events stay, if they are still there."""
        await self._redis.call("DEL", self.mark)
        await send(self._redis, [("UNLINK", key) async for key in scan(self._redis, f"{self._prefix}[tldqngc]*")])
        seconds, micros = await self._redis.call("TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        await send(self._redis, [command for task in truth for command in self._place(task, now_ms)])
        await self._redis.call("SET", self.mark, run_id)

    def sync_arguments(self, task: Task) -> tuple[Argument, ...]:
        """Of tasks_sync.lua, for a task as it stands in the ledger."""
        now_s = self._clock()
        state = "closed" if task.is_closed else "queued" if task.state == "queued" else "held"
        where = (state, task.kind, task.priority, task.owner, task.delivery, order(task))
        return (task.id, *where, self._wait_ms(task, now_s), int(task.is_cancel_requested), base(task, now_s))

    def _wait_ms(self, task: Task, now_s: float) -> int:
        if task.state == "queued":
            return 0 if task.not_before is None else max(0, math.ceil((task.not_before - now_s) * 1000))
        return round(self._lease_s * 1000)

    def _place(self, task: Task, now_ms: int) -> Iterator[Command]:
        """As tasks_sync.lua does it."""
        now_s = self._clock()
        place: dict[str, Argument] = {
            "kind": task.kind,
            "priority": task.priority,
            "owner": task.owner,
            "delivery": task.delivery,
        }
        fields = {**place, "order": order(task), "cancel": int(task.is_cancel_requested), "base": base(task, now_s)}
        yield ("HSET", f"{self._prefix}t:{task.id}", *(part for item in fields.items() for part in item))
        wait_ms = self._wait_ms(task, now_s)
        if task.state != "queued":
            yield ("ZADD", f"{self._prefix}leases", now_ms + wait_ms, task.id)
        elif wait_ms:
            yield ("ZADD", f"{self._prefix}delayed", now_ms + wait_ms, task.id)
        else:
            yield ("ZADD", f"{self._prefix}q:{task.kind}:{task.priority}:{task.owner}", order(task), task.id)
            yield ("ZADD", f"{self._prefix}n:{task.kind}:{task.priority}", 0, task.owner)


def order(task: Task) -> int:
    """Where a task stands among its owner's: microseconds, which a double holds exactly."""
    return round(task.created_at * 1e6)


def base(task: Task, now_s: float) -> int:
    """What the numbers of a task's further events begin above, when Redis may have lost some that a client has seen.

    The milliseconds since the task was made: more than there were events, unless there were a thousand a second all the time.
    """
    return 0 if task.delivery == 0 else max(0, math.ceil((now_s - task.created_at) * 1000))
