"""The main side of all workers: which are connected, what they hold, who is told what becomes of it.

A connection may break and be made again, and the server may be started again: a delivery goes on as long as the journal has it as
the present one of the worker that asks. What was generated for it meanwhile is settled; nothing is charged twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import structlog

from atlas.errors import AtlasError, DeliveryOver, EngineUnavailable, Forbidden, LimitsUnavailable, NotFound
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.exchange import still_loading
from atlas.gateway.held_task import HeldTask
from atlas.gateway.meter import Meter
from atlas.ralph import SOLVE
from atlas.store import Delivery, Ending, Finish, Journal, Lease, Standing, Task
from atlas.types import RequestState

log = structlog.get_logger("atlas.workers")

T = TypeVar("T")
STATES: Mapping[str, RequestState] = {"done": "completed", "failed": "failed", "cancelled": "aborted"}
UNHEARD_SHARE = 0.6  # of a lease, after which a worker that has not said it has its task never got it
SHUTDOWN_S = 5.0
GIVE_BACK_S = 2.0  # for workers of this machine, once the server stops


class Listener(Protocol):
    """A connected worker."""

    worker: str
    is_near: bool

    def order(self, delivery: Delivery, standing: Standing) -> None:
        """Pass on that a delivery is to stop, or is over."""

    def close(self) -> None: ...


class Workers:
    """Lives in the event loop, from the start of the application to its end."""

    def __init__(self, deps: GatewayDeps, meter: Meter) -> None:
        self.deps, self.meter = deps, meter
        self.watch = deps.workers
        self._connected: dict[str, Listener] = {}
        self._held: dict[Delivery, HeldTask] = {}
        self._under_way: set[asyncio.Task[Any]] = set()
        self._let_go = asyncio.Event()  # set with each task that is not held any more
        self._is_closing = False

    @property
    def journal(self) -> Journal:
        """Raises LimitsUnavailable: there is none here."""
        if self.deps.journal is None:
            raise LimitsUnavailable("this server keeps no tasks: it has no Redis")
        return self.deps.journal

    # -- connections --

    def joined(self, listener: Listener) -> None:
        """A worker has said who it is; an earlier connection of the same one is dead."""
        earlier = self._connected.get(listener.worker)
        self._connected[listener.worker] = listener
        self._count()
        log.info("worker.joined", worker=listener.worker, near=listener.is_near)
        if earlier is not None:
            earlier.close()

    def left(self, listener: Listener) -> None:
        """Its connection is over; what it was given and has not said it has is for others."""
        if self._connected.get(listener.worker) is not listener:
            return
        del self._connected[listener.worker]
        self._count()
        log.info("worker.left", worker=listener.worker)
        for held in tuple(self._held.values()):
            if held.task.worker == listener.worker and not held.is_heard_of:
                self._spawn(self._unheard(held))

    # -- deliveries --

    async def lease(self, listener: Listener, *, wait_s: float) -> Lease | None:
        """The next task for a worker.

        Raises:
            EngineUnavailable: the model is still loading, or the server shuts down.
            LimitsUnavailable, LedgerUnavailable: as `Journal.lease`.
        """
        if self._is_closing or self.deps.draining.is_set():
            raise EngineUnavailable("the server is shutting down", retry_after_s=2.0)
        if self.deps.engine() is None:
            raise still_loading()
        lease = await self.journal.lease(listener.worker, wait_s=wait_s, kind=SOLVE)
        if lease is None:
            return None
        try:
            held = self._hold(lease.task)
        except (NotFound, Forbidden) as error:  # its owner is gone, or disabled: nobody is there for whom to do it
            await self.journal.finish(lease.delivery, Ending(outcome="failed", reason=error.message))
            return None
        if self._connected.get(listener.worker) is not listener or self.deps.draining.is_set():
            await self._unheard(held)
            return None
        asyncio.get_running_loop().call_later(lease.lease_s * UNHEARD_SHARE, lambda: self._spawn(self._unheard(held)))
        return lease

    async def find(self, listener: Listener, delivery: Delivery) -> HeldTask:
        """What this worker holds.

        Raises:
            DeliveryOver: it does not, or not any more.
        """
        held = self._held.get(delivery) or await self._found_again(delivery)
        if held is None:
            raise DeliveryOver(f"delivery {delivery.number} of task {delivery.task_id} is over")
        _check_holder(held, listener)
        held.is_heard_of = True
        return held

    async def heartbeat(self, listener: Listener, delivery: Delivery) -> Standing:
        """As the journal's."""
        try:
            await self.find(listener, delivery)
        except DeliveryOver:
            return "lost"
        standing = await self.journal.heartbeat(delivery)
        if standing == "lost":
            await self._lost(delivery)
        return standing

    async def finish(self, listener: Listener, delivery: Delivery, ending: Ending, *, events: Sequence[bytes] = ()) -> Finish:
        """Tell the last events, settle and close, whether or not the worker is still there to hear of it.

        Raises:
            LedgerUnavailable: try again.
            DeliveryOver: it is another worker's.
        """
        return await asyncio.shield(self._spawn(self._finish(listener, delivery, ending, events)))

    async def _finish(self, listener: Listener, delivery: Delivery, ending: Ending, events: Sequence[bytes]) -> Finish:
        held = self._held.get(delivery) or await self._found_again(delivery)
        if held is None:
            how = await self.journal.finish(delivery, ending)  # repeated, or fenced and counted
            self.watch.endings["fenced"] += how == "fenced"
            return how
        _check_holder(held, listener)
        held.is_heard_of = True
        how = await self._closed(held, ending, events)
        self._forget(held, "fenced" if how == "fenced" else ending.outcome)
        return how

    async def _closed(self, held: HeldTask, ending: Ending, events: Sequence[bytes]) -> Finish:
        """What it has cost and how it ended, in one commit."""
        settling = partial(held.metered.settling, STATES[ending.outcome], ending.outcome)
        held.unwatch()  # the watch would hear of this end, and take the task for lost
        try:
            await held.metered.stop()
            return await self.journal.finish(held.delivery, ending, events=events, beside=settling)
        except BaseException:
            if self._held.get(held.delivery) is held:
                held.unwatch()  # if another try to end it has failed meanwhile
                held.watch()
            raise

    async def give_back(self, listener: Listener, delivery: Delivery, *, reason: str, delay_s: float, is_excused: bool) -> bool:
        """Settle, and have it done later. Raises as `Journal.give_back`."""
        held = await self.find(listener, delivery)
        await held.settle("interrupted", "given_back")
        is_made = await self.journal.give_back(delivery, reason=reason, delay_s=delay_s, is_excused=is_excused)
        self._forget(held, "given_back" if is_made else "lost")
        return is_made

    # -- the house --

    async def drain(self) -> None:
        """Once the server stops, let workers elsewhere go: they will be back, with what they hold."""
        await self.deps.draining.wait()
        for listener in tuple(self._connected.values()):
            if not listener.is_near:
                listener.close()

    async def close(self) -> None:
        """Have what workers of this machine hold given back, and settle what others hold, who will be back."""
        self._is_closing = True
        await self._given_back()
        for listener in tuple(self._connected.values()):
            listener.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):
                for held in tuple(self._held.values()):
                    await self._settle_lost(held)
                while self._under_way:
                    await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _given_back(self) -> None:
        """The server's own workers do so when they are told to end; what they do not get done is done for them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GIVE_BACK_S):
                while self._held_near():
                    self._let_go.clear()
                    await self._let_go.wait()
        for held in self._held_near():
            with contextlib.suppress(AtlasError):  # then the lease ends by itself
                await held.settle("interrupted", "given_back")
                await self.journal.give_back(held.delivery, reason="the server was shut down", is_excused=True)
            self._forget(held, "given_back")

    def _held_near(self) -> list[HeldTask]:
        near = {listener.worker for listener in self._connected.values() if listener.is_near}
        return [held for held in self._held.values() if held.task.worker in near]

    async def _found_again(self, delivery: Delivery) -> HeldTask | None:
        """A delivery that was under way when the server was started again."""
        if self._is_closing:
            raise EngineUnavailable("the server is shutting down", retry_after_s=2.0)
        task = await self._task(delivery)
        if task is None or task.state not in ("leased", "running") or task.delivery != delivery.number:
            return None
        return self._held.get(delivery) or self._hold(task)

    async def _task(self, delivery: Delivery) -> Task | None:
        try:
            return await self.journal.get(delivery.task_id)
        except AtlasError as error:
            if error.status == 404:
                return None
            raise

    def _hold(self, task: Task) -> HeldTask:
        model = self.deps.models.loaded_id() or ""
        held = HeldTask(self.deps, self.meter, task, model=model, on_order=self._ordered)
        self._held[held.delivery] = held
        self._count()
        return held

    def _ordered(self, held: HeldTask, standing: Standing) -> None:
        listener = self._connected.get(held.task.worker)
        if listener is not None:
            listener.order(held.delivery, standing)
        if standing == "lost":
            self._spawn(self._lost(held.delivery))

    async def _lost(self, delivery: Delivery) -> None:
        if (held := self._held.get(delivery)) is not None:
            await self._settle_lost(held)

    async def _settle_lost(self, held: HeldTask) -> None:
        self._forget(held, "lost")
        with contextlib.suppress(AtlasError):  # the ledger's; the row is written when it can be
            await held.settle("interrupted", "lost")

    async def _unheard(self, held: HeldTask) -> None:
        """Its worker never got it: that is no fault of the task, and does not count."""
        if held.is_heard_of or self._held.get(held.delivery) is not held:
            return
        self._forget(held, "untaken")
        reason = f"worker {held.task.worker} did not take it"
        with contextlib.suppress(AtlasError):  # then the lease ends by itself
            await self.journal.give_back(held.delivery, reason=reason, is_excused=True)

    def _forget(self, held: HeldTask, ending: str) -> None:
        held.unwatch()
        if self._held.get(held.delivery) is held:
            del self._held[held.delivery]
            self.watch.endings[ending] += 1
            self._let_go.set()
        self._count()

    def _count(self) -> None:
        names = [held.task.worker for held in self._held.values()]
        self.watch.see({worker: names.count(worker) for worker in self._connected})

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._arrived)
        return task

    def _arrived(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, AtlasError):
            log.error("workers.broken", exc_info=error)


def _check_holder(held: HeldTask, listener: Listener) -> None:
    if held.task.worker != listener.worker:
        raise DeliveryOver(f"delivery {held.delivery.number} of task {held.task.id} is another worker's")
