"""Keeps Redis in step with the ledger: tells it of every change, puts right what differs, and returns what workers have lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog

from atlas.errors import LedgerUnavailable, LimitsUnavailable, NotFound
from atlas.store.bells import Bells
from atlas.store.journal_values import Delivery, Finish, Lease, Submitted, Task, TaskClosed
from atlas.store.live_values import Caller
from atlas.store.tasks_blobs import TaskBlobs
from atlas.store.tasks_book import HELD, Change, Finished, TaskBook
from atlas.store.tasks_queue import Beat, NewEvent, TaskQueue
from atlas.store.written import Written, arrival

T = TypeVar("T")
DEADLINES_EVERY_S = 5.0  # chosen; a task whose deadline has passed is not handed out in between either

log = structlog.get_logger("atlas.journal")


class TaskKeeper:
    """What the journal does behind its front, for one event loop.

    Attributes:
        waiting: rings by kind when a task may be due.
        news: rings by task when there is an event, or it is closed; whoever waits then is told how, and need not ask the ledger.
        orders: rings by task when its row has changed.
    """

    def __init__(self, book: TaskBook, redis: Caller, *, blobs: TaskBlobs, lease_s: float, namespace: str) -> None:
        self.book = book
        self.blobs = blobs
        self.lease_s = lease_s
        self.queue = TaskQueue(redis, source=book.open_tasks, on_look=self._tend, namespace=namespace, lease_s=lease_s)
        self.waiting: Bells[None] = Bells()
        self.news: Bells[TaskClosed] = Bells()
        self.orders: Bells[None] = Bells()
        self._owed: set[str] = set()  # tasks of which Redis may not know how they stand
        self._under_way: set[asyncio.Task[Any]] = set()
        self._deadlines_at_s = 0.0

    async def lasting(self, work: Coroutine[Any, Any, T]) -> T:
        """Go on with `work` even if whoever waits for it goes away: what the ledger has, Redis must hear of."""
        return await asyncio.shield(self.begin(work))

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """As `lasting`, to be waited for later or not at all."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._arrived)
        return task

    async def read(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work` in a thread, which cannot be cancelled; `close` waits for it."""
        return await self.lasting(asyncio.to_thread(work, *arguments))

    async def submitted(self, future: Written[Submitted]) -> Submitted:
        """Follow a submission through."""
        submitted = await arrival(future)
        if submitted.is_new:
            await self._tell(submitted.task)
        return submitted

    async def changed(self, future: Written[Change]) -> Change:
        """Follow a change of a task through."""
        change = await arrival(future)
        if change.task is not None:
            await self._tell(change.task)
        return change

    async def finished(self, future: Written[Finished], *, after: Awaitable[object], result: bytes | None) -> Finish:
        """Follow an ending through; `after` comes before anybody is told of it."""
        finished = await arrival(future)
        await after
        if finished.how == "closed" and finished.task is not None:
            await self._tell(finished.task, result)
        return finished.how

    async def pick(self, kind: str, worker: str) -> Lease | float | None:
        """The next lease, or how long to wait for one; None: nothing is delayed. Cancelled, it gives back what it has got."""
        picking = self.begin(self._pick(kind, worker))
        try:
            return await asyncio.shield(picking)
        except asyncio.CancelledError:
            picking.add_done_callback(self._return_unwanted)
            raise

    async def beat(self, delivery: Delivery) -> Beat | None:
        """Prolong a lease; None: this delivery is over."""
        beat = await self.queue.beat(delivery)
        if beat is None and await self._restore(delivery):
            beat = await self.queue.beat(delivery)
        return beat

    async def put_events(self, delivery: Delivery, events: Sequence[NewEvent]) -> int | None:
        """Number of the last event; None: this delivery is over."""
        number = await self.queue.put_events(delivery, events)
        if number is None and await self._restore(delivery):
            number = await self.queue.put_events(delivery, events)
        if number is not None:
            self.news.ring(delivery.task_id)
        return number

    async def closed(self, task_id: str) -> TaskClosed | None:
        """How it is closed; None: it is open. Only if Redis does not have it as open, the ledger is asked. Raises NotFound."""
        with contextlib.suppress(LimitsUnavailable):
            if await self.queue.is_open(task_id):
                return None
        task = await self.read(self.book.get, task_id)
        if task is None:
            raise missing(task_id)
        return TaskClosed(task=task) if task.is_closed else None

    async def close(self) -> None:
        """Let what is under way come to its end, and disconnect."""
        await self.queue.stop()
        while self._under_way:
            await asyncio.gather(*self._under_way, return_exceptions=True)
        await self.queue.close()

    def _arrived(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # is seen, even if nobody waits any more

    async def _pick(self, kind: str, worker: str) -> Lease | float | None:
        while True:
            upcoming = await self.queue.lease(kind)
            if upcoming.delivery is None:
                return upcoming.wait_s
            if lease := await self._take(upcoming.delivery, worker):
                return lease

    async def _take(self, delivery: Delivery, worker: str) -> Lease | None:
        """Have the ledger confirm what Redis handed out; None: it did not, and Redis has been put right."""
        try:
            taken = await arrival(self.book.take(delivery, worker))
        except LedgerUnavailable:
            self._owed.add(delivery.task_id)
            raise
        if taken.task is None or not taken.is_made:
            await self._put_right(delivery.task_id, taken.task)
            return None
        body = await self.blobs.load(delivery.task_id, taken.request)
        return Lease(task=taken.task, delivery=delivery, body=body, lease_s=self.lease_s)

    def _return_unwanted(self, picking: asyncio.Task[Lease | float | None]) -> None:
        if picking.cancelled() or picking.exception() or not isinstance(lease := picking.result(), Lease):
            return
        reason = f"worker {lease.task.worker} went away before it got the task"
        self.begin(self.changed(self.book.give_back(lease.delivery, reason=reason, is_excused=True)))

    async def _restore(self, delivery: Delivery) -> bool:
        """If the ledger says that this delivery is the present one, Redis shall know it, too."""
        task = await self.read(self.book.get, delivery.task_id)
        if task is None or task.state not in HELD or task.delivery != delivery.number:
            return False
        await self.queue.sync(task)
        return True

    async def _tell(self, task: Task, result: bytes | None = None) -> None:
        """Tell Redis, and all who wait, how a task stands now; Redis later, if it is away."""
        if task.is_closed:  # the ledger has said so, and Redis has all events already
            self.news.ring(task.id, TaskClosed(task=task, result=result))
        try:
            await self.queue.sync(task)
        except LimitsUnavailable:
            self._owed.add(task.id)
        else:
            self._owed.discard(task.id)
            if task.state == "queued":
                self.waiting.ring(task.kind)
        if not task.is_closed:
            self.news.ring(task.id)
        self.orders.ring(task.id)

    async def _put_right(self, task_id: str, task: Task | None) -> None:
        if task is not None:
            await self._tell(task)
        else:
            await self.queue.forget(task_id)
            self._owed.discard(task_id)
            self.news.ring(task_id)

    async def _tend(self) -> None:
        """Once a second while Redis is well, and as soon as it is back. A ledger that is away says so itself."""
        with contextlib.suppress(LedgerUnavailable):
            for task_id in list(self._owed):
                await self._put_right(task_id, await self.read(self.book.get, task_id))
            lost = await self.queue.expired()
            await asyncio.gather(*(self._lose(delivery) for delivery in lost))
            if time.monotonic() >= self._deadlines_at_s:
                self._deadlines_at_s = time.monotonic() + DEADLINES_EVERY_S
                for task in await self.read(self.book.expire_overdue):
                    await self._tell(task)

    async def _lose(self, delivery: Delivery) -> None:
        reason = f"its worker was not heard of for {self.lease_s:g} s"
        change = await self.changed(self.book.give_back(delivery, reason=reason))
        if change.task is None:
            await self.queue.forget(delivery.task_id)
        elif change.is_made:
            log.warning("task.lease_lost", task_id=delivery.task_id, delivery=delivery.number, worker=change.task.worker)


def missing(task_id: str) -> NotFound:
    return NotFound(f"there is no task {task_id[:50]!r}; it may have been deleted some time after it was closed")
