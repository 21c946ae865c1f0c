"""The task journal: every long job, submitted once and closed once, whatever dies on the way.

The ledger is the truth, and each change is written there first. Redis holds what can be made again from it: who is next, how long
each lease lasts, what happened lately. What could not be told to Redis is told later, and after a restart of either side Redis is
filled anew. Without Redis nothing is submitted or handed out (LimitsUnavailable); a worker that is done can still say so.

Those who wait (workers for a task, clients for an event) are woken in this process, for all that is written goes through it: one
journal per ledger and namespace.

Not covered: a worker that goes on after it has lost its lease may still do things elsewhere. Its steps, events and results are
not taken, but a message it sends to somebody else is its own affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import structlog

from atlas.errors import AtlasError, BadRequest, Conflict, LimitsUnavailable
from atlas.store.journal_values import (
    LAST_NUMBER,
    PRIORITIES,
    Delivery,
    Ending,
    Finish,
    Lease,
    Quota,
    Standing,
    Submission,
    Submitted,
    Task,
    TaskClosed,
    TaskEvent,
    TaskFilter,
    TaskPage,
    TaskStats,
)
from atlas.store.live_values import Caller
from atlas.store.tasks_blobs import Stored, TaskBlobs
from atlas.store.tasks_book import HELD, TaskBook
from atlas.store.tasks_keeper import TaskKeeper, missing
from atlas.store.tasks_queue import EVENT_INLINE_BYTES, Entry, NewEvent
from atlas.store.written import arrival

LEASE_S = 15.0  # a worker is to be heard of three times in it (chosen)
TIMEOUT_S = 1.0
RECHECK_S = 10.0  # how long a worker that waits relies on being woken (chosen)
CANCELLED = "cancelled by its owner"

_KIND = re.compile(r"[a-z_]{1,16}")

log = structlog.get_logger("atlas.journal")
NO_QUOTA, EVERYTHING = Quota(), TaskFilter()


async def _nothing() -> None:
    pass


class Journal:
    """The tasks of one server, for one event loop. Connects when first used; `reconcile` at start sees to it.

    Args:
        lease_s: a worker that is not heard of for so long has lost its task.
        namespace: of letters and digits; begins the names of all keys in Redis.
    """

    def __init__(
        self, book: TaskBook, redis: Caller, *, blobs: TaskBlobs, lease_s: float = LEASE_S, namespace: str = "atlas"
    ) -> None:
        self._book = book
        self._blobs = blobs
        self._keeper = TaskKeeper(book, redis, blobs=blobs, lease_s=lease_s, namespace=namespace)

    @property
    def trouble(self) -> str:
        """Why Redis cannot be used, for the operator; empty while it can."""
        return self._keeper.queue.trouble

    # -- for those who have something to be done ------------------------------------------------------------------------------

    async def submit(self, submission: Submission, quota: Quota = NO_QUOTA) -> Submitted:
        """Add a task; when this returns it is on the disk. The same idempotency key and body are the same task.

        Raises:
            Conflict: the idempotency key was used for another body.
            RateLimited: the owner has as many open tasks as allowed.
            BudgetExhausted: the owner has used today's seconds of the sandbox.
            BadRequest: a value is out of its range.
            LimitsUnavailable, LedgerUnavailable: nothing was submitted; with an idempotency key it can be tried again safely.
        """
        _check(submission)
        await self._keeper.queue.until_ready()
        task_id = f"task_{secrets.token_hex(12)}"
        request = await self._blobs.store(task_id, submission.body)
        digest = hashlib.sha256(submission.body).hexdigest()
        future = self._book.submit(task_id, submission, request=request, digest=digest, quota=quota)
        return await self._keeper.lasting(self._keeper.submitted(future))

    async def cancel(self, task_id: str, *, owner: str | None = None, reason: str = CANCELLED) -> Task:
        """Close a task that waits; have the worker of one that runs told. A closed one stays as it is.

        Raises:
            NotFound: there is no such task, or it is not this owner's.
        """
        await self.get(task_id, owner=owner)
        change = await self._keeper.lasting(self._keeper.changed(self._book.cancel(task_id, reason)))
        if change.task is None:
            raise missing(task_id)
        return change.task

    async def accept(self, task_id: str, body: bytes, *, owner: str | None = None) -> Task:
        """Keep what the user made of the result, beside it; a second correction takes the place of the first.

        Raises:
            NotFound: there is no such task, or it is not this owner's.
            Conflict: it is not closed yet.
        """
        await self.get(task_id, owner=owner)
        change = await arrival(self._book.accept(task_id, await self._blobs.store(task_id, body)))
        if change.task is None:
            raise missing(task_id)
        if not change.is_made:
            raise Conflict(f"task {task_id} is {change.task.state}; a result can be corrected when there is one")
        return change.task

    async def get(self, task_id: str, *, owner: str | None = None) -> Task:
        """Raises NotFound: there is no such task, or it is not this owner's."""
        task = await self._keeper.read(self._book.get, task_id)
        if task is None or owner not in (None, task.owner):
            raise missing(task_id)
        return task

    async def request(self, task_id: str) -> bytes:
        """The body that was submitted."""
        return await self._body(task_id, "request")

    async def result(self, task_id: str) -> bytes:
        """What the worker brought; empty if nothing."""
        return await self._body(task_id, "result")

    async def accepted(self, task_id: str) -> bytes:
        """The user's correction; empty if there is none."""
        return await self._body(task_id, "accepted")

    async def list(self, wanted: TaskFilter = EVERYTHING, *, limit: int = 100, cursor: str = "") -> TaskPage:
        """Tasks that fit, the newest first, a thousand at most."""
        return await self._keeper.read(partial(self._book.page, wanted, limit=limit, cursor=cursor))

    async def stats(self, *, owner: str | None = None, kind: str | None = None) -> TaskStats:
        """Counts, of all tasks or of one owner or kind."""
        return await self._keeper.read(partial(self._book.stats, owner=owner, kind=kind))

    async def sandbox_s(self, owner: str) -> float:
        """What an owner's finished tasks have used of the sandbox today (UTC)."""
        return await self._keeper.read(self._book.sandbox_s, owner)

    async def events(self, task_id: str, *, after: int = 0) -> AsyncIterator[TaskEvent | TaskClosed]:
        """What happens to a task, from the event behind number `after` on, and in the end how it closed.

        Old events may be missing: the stream holds the last thousand, is kept for a quarter of an hour after the end, and does
        not survive the loss of Redis. The end is always told, from the ledger.

        Raises:
            NotFound: there is no such task.
            LimitsUnavailable: Redis does not answer; to be continued later from the last number.
        """
        closed: TaskClosed | None = None
        while after < LAST_NUMBER:
            ticket = self._keeper.news.ticket(task_id)
            closed = closed or await self._keeper.closed(task_id)  # looked at first: nothing is added once it is closed
            async for event in self._stream(task_id, after, is_closed=closed is not None):
                yield event
                after = event.number
            if closed is not None:
                yield closed
                return
            await ticket.wait()
            closed = ticket.word

    # -- for workers ----------------------------------------------------------------------------------------------------------

    async def lease(self, worker: str, *, wait_s: float = 0.0, kind: str = "solve") -> Lease | None:
        """The next task for `worker`; None if there was none for `wait_s`. Cancelled, it leaves no task behind.

        Raises:
            LimitsUnavailable, LedgerUnavailable: nothing can be handed out now.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + wait_s
        while True:
            ticket = self._keeper.waiting.ticket(kind)
            found = await self._keeper.pick(kind, worker)
            if isinstance(found, Lease):
                return found
            left_s = until_s - loop.time()
            if left_s <= 0:
                return None
            await _wait(ticket, min(left_s, RECHECK_S if found is None else found))

    async def heartbeat(self, delivery: Delivery) -> Standing:
        """Say that the worker lives: it goes on to hold the task, is to stop (and finish as cancelled), or has lost it.

        Raises:
            LimitsUnavailable, LedgerUnavailable: nobody knows; go on and try again.
        """
        beat = await self._keeper.beat(delivery)
        if beat is None:
            return "lost"
        if beat.is_first:
            await arrival(self._book.begin(delivery))
        return "cancelled" if beat.is_cancelled else "held"

    async def until_stopped(self, delivery: Delivery, *, look_after_s: float = 0.0) -> Standing:
        """Wait until this delivery is to stop or is over: "cancelled" or "lost", at once when that happens.

        Whether it had happened before the ledger is asked after `look_after_s`.
        """
        await _wait(self._keeper.orders.ticket(delivery.task_id), look_after_s)
        while True:
            ticket = self._keeper.orders.ticket(delivery.task_id)
            task = await self._keeper.read(self._book.get, delivery.task_id)
            if task is None or task.state not in HELD or task.delivery != delivery.number:
                return "lost"
            if task.is_cancel_requested:
                return "cancelled"
            await ticket.wait()

    async def put_events(self, delivery: Delivery, *bodies: bytes) -> int | None:
        """Tell those who follow the task; the number of the last event, or None if this delivery is over."""
        return await self._keeper.put_events(delivery, [await self._new_event(delivery.task_id, body) for body in bodies])

    async def finish(
        self,
        delivery: Delivery,
        ending: Ending,
        *,
        events: Sequence[bytes] = (),
        beside: Callable[[], Awaitable[None]] = _nothing,
    ) -> Finish:
        """Close the task. Needs no Redis. May be repeated until it is answered.

        The last `events` are told before the end, if they can be. `beside` asks the ledger for what shall be in the same commit,
        whatever this returns; it is waited for, and what it raises is raised.

        Returns:
            "closed"; "repeated" if this delivery had closed it before; "fenced" if the delivery is over: then the result has been
            counted and thrown away.

        Raises:
            LedgerUnavailable: try again.
        """
        result = await self._blobs.store(delivery.task_id, ending.result)
        with self._book.together():
            other = beside()
            future = self._book.finish(delivery, ending, result)
        told = self._keeper.begin(self._tell_last(delivery, events))
        finishing = self._keeper.finished(future, after=told, result=result.inline)
        how, _ = await asyncio.gather(self._keeper.lasting(finishing), other)
        if how == "fenced":
            log.warning("task.fenced", task_id=delivery.task_id, delivery=delivery.number)
        return how

    async def give_back(self, delivery: Delivery, *, reason: str, delay_s: float = 0.0, is_excused: bool = False) -> bool:
        """Have the task tried again after `delay_s`, or closed as dead if this was the last of its deliveries.

        An excused delivery does not count, since the task had no part in it: the worker is shut down, say.

        Returns:
            False: this delivery is over, and nothing was done.
        """
        future = self._book.give_back(delivery, reason=reason, delay_s=delay_s, is_excused=is_excused)
        return (await self._keeper.lasting(self._keeper.changed(future))).is_made

    async def steps(self, task_id: str) -> dict[str, bytes]:
        """Results of finished steps by their names, in order; what is here need not be done again."""
        found = await self._keeper.read(self._book.steps, task_id)
        return {step: await self._blobs.load(task_id, stored) for step, stored in found.items()}

    async def put_step(self, delivery: Delivery, step: str, result: bytes) -> bool:
        """Keep a finished step's result; False, and it is not kept, if the delivery is over. The first result stays.

        Raises:
            BadRequest: the name has not 1 to 200 characters.
        """
        if not 1 <= len(step) <= 200:
            raise BadRequest("the name of a step has 1 to 200 characters", param="step")
        return await arrival(self._book.put_step(delivery, step, await self._blobs.store(delivery.task_id, result)))

    # -- for the house --------------------------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Make Redis agree with the ledger about everything. Done by itself whenever Redis was away.

        Raises:
            LimitsUnavailable, LedgerUnavailable
        """
        await self._keeper.queue.refill(await self._keeper.read(self._book.open_tasks))

    async def prune(self) -> int:
        """Delete tasks that were closed long enough ago, and files of tasks that are gone; how many tasks."""
        num_deleted = await self._keeper.read(self._book.prune)
        await self._keeper.read(self._blobs.sweep, self._book.known)
        return num_deleted

    async def close(self) -> None:
        """Let what is under way come to its end, and disconnect."""
        await self._keeper.close()

    async def _stream(self, task_id: str, after: int, *, is_closed: bool) -> AsyncIterator[TaskEvent]:
        """What there is now; for a closed task what is left, for it does not matter any more if Redis is away."""
        while True:
            try:
                page = await self._keeper.queue.events(task_id, after=after)
            except LimitsUnavailable:
                if is_closed:
                    return
                raise
            for entry in page:
                yield await self._event(task_id, entry)
            if not page:
                return
            after = page[-1].number

    async def _tell_last(self, delivery: Delivery, bodies: Sequence[bytes]) -> None:
        """What cannot be told is in the result."""
        if bodies:
            with contextlib.suppress(AtlasError):
                await self.put_events(delivery, *bodies)

    async def _new_event(self, task_id: str, body: bytes) -> NewEvent:
        stored = await self._blobs.store(task_id, body, inline_bytes=EVENT_INLINE_BYTES)
        return NewEvent(body) if stored.blob is None else NewEvent(stored.blob.encode(), is_blob=True)

    async def _event(self, task_id: str, entry: Entry) -> TaskEvent:
        body = entry.body
        if entry.is_blob:
            body = await self._blobs.load(task_id, Stored(blob=entry.body.decode()))
        return TaskEvent(number=entry.number, at=entry.at, body=body)

    async def _body(self, task_id: str, which: Literal["request", "result", "accepted"]) -> bytes:
        stored = await self._keeper.read(self._book.body, task_id, which)
        if stored is None:
            raise missing(task_id)
        return await self._blobs.load(task_id, stored)


def open_journal(book: TaskBook, url: str, *, blobs: Path, lease_s: float = LEASE_S, namespace: str = "atlas") -> Journal:
    """The journal over a store's `tasks` and the Redis at `url`; long bodies lie under the folder `blobs`."""
    # Here and not above: redis-py takes 160 ms to import, and the command line and the parent of the server do not need it.
    from atlas.store.live_link import Link

    link = Link(url, timeout_s=TIMEOUT_S)
    return Journal(book, link, blobs=TaskBlobs(blobs / "tasks"), lease_s=lease_s, namespace=namespace)


async def _wait(ticket: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await ticket.wait()


def _check(submission: Submission) -> None:
    if submission.priority not in PRIORITIES:
        raise BadRequest(f"priority is {submission.priority}; it is 0 (interactive), 1 or 2 (batch)", param="priority")
    if not _KIND.fullmatch(submission.kind):
        raise BadRequest("a task's kind has 1 to 16 characters out of a-z and '_'", param="kind")
    key = submission.idempotency_key
    if len(key) > 200 or not key.isprintable():
        raise BadRequest("an idempotency key has at most 200 printable characters", param="idempotency_key")
    if not 1 <= submission.max_deliveries <= 1000:
        raise BadRequest(f"max_deliveries is {submission.max_deliveries}; it is 1 to 1000", param="max_deliveries")
    for name in ("delay_s", "result_ttl_s"):
        if not 0 <= getattr(submission, name) < math.inf:
            raise BadRequest(f"{name} is {getattr(submission, name)}; it is a number of seconds", param=name)
    if submission.deadline is not None and not math.isfinite(submission.deadline):
        raise BadRequest("a deadline is a time in Unix seconds", param="deadline")
