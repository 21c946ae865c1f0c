"""A worker: takes a task, solves it, brings the result; one at a time, for as long as it is wanted.

What goes wrong with us gives the task back, for another try after a while; the journal counts the tries and gives up in the end.
What is wrong with the request itself closes the task as failed. A task that is lost is dropped: nobody would hear what is still
said about it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import structlog

from atlas.errors import AtlasError, BudgetExhausted, DeliveryOver, RateLimited
from atlas.ralph.bodies import read_request
from atlas.ralph.ending import Answer, Ending, Return, ending_of, pause_s
from atlas.ralph.held import Held, RunProgram
from atlas.ralph.line import Line
from atlas.ralph.loop import solve_task
from atlas.ralph.teller import Teller
from atlas.ralph.tools import Candidates, Tools
from atlas.types import Prompt, RunClosed
from atlas.workline import AskLease, Finish, GiveBack, Leased

log = structlog.get_logger("atlas.worker")

T = TypeVar("T")
LEASE_WAIT_S = 10.0  # chosen: a connection that has died unnoticed is noticed in twice that
RETRY_S = 0.5  # between tries to have the end of a task heard
LAST_WORD_S = 5.0  # for giving back when the worker is shut down; then the lease will end by itself


class Worker:
    """Solves tasks over a line, until `stop`: then the task it holds is given back.

    Args:
        sandbox: asked at each task for what runs its programs; None: the server does.
    """

    def __init__(self, line: Line, sandbox: Callable[[], RunProgram | None] = lambda: None) -> None:
        self._line, self._sandbox = line, sandbox
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def work(self) -> None:
        """Until it is stopped."""
        while not self._stopping.is_set():
            lease = await before(self._next(), self._stopping)
            if lease is not None:
                await _Delivery(Held(self._line, lease), self._sandbox(), self._stopping).see_through()
        await self._line.flush()

    async def _next(self) -> Leased | None:
        try:
            answer = await self._line.ask(lambda number: AskLease(id=number, wait_s=LEASE_WAIT_S), timeout_s=2 * LEASE_WAIT_S)
        except AtlasError as error:
            log.info("worker.waits", reason=error.message)
            await asyncio.sleep(max(RETRY_S, error.retry_after_s or 0.0))
            return None
        return answer.lease


class _Delivery:
    """A task from its lease to whatever end."""

    def __init__(self, held: Held, run: RunProgram | None, stopping: asyncio.Event) -> None:
        self._held, self._stopping = held, stopping
        self._tools = held.tools(run)
        self._limited: RateLimited | None = None
        self._teller = Teller(held)

    async def see_through(self) -> None:
        held, lease = self._held, self._held.lease
        log.info("task.begun", task_id=lease.task, delivery=lease.delivery)
        keeping = asyncio.create_task(held.keep())
        try:
            ending = await before(self._solved(), held.is_cancelled, held.is_lost, self._stopping) or self._interrupted()
            if ending is None or held.is_lost.is_set():
                log.warning("task.dropped", task_id=lease.task, delivery=lease.delivery)
            else:
                await before(self._say(ending), held.is_lost)
        finally:
            self._teller.stop()
            await ended(keeping)

    def _interrupted(self) -> Ending | None:
        """It was not solved to its end."""
        if self._held.is_lost.is_set():
            return None
        if self._held.is_cancelled.is_set():
            return Answer(outcome="cancelled", reason="cancelled while it ran")
        return Return(reason="its worker was shut down", is_excused=True) if self._stopping.is_set() else None

    # -- solving --

    async def _solved(self) -> Ending | None:
        lease = self._held.lease
        try:
            request = read_request(lease.body)
        except msgspec.MsgspecError as error:
            return Answer(outcome="failed", reason=f"this is no request that can be solved: {error}")
        try:
            async with contextlib.aclosing(solve_task(request, self._watched())) as events:
                async for event in events:
                    if isinstance(event, RunClosed):
                        return ending_of(event.run, lease.delivery, self._limited)
                    self._teller.tell(event)
        except Exception:  # a defect of ours: somebody else may fare better, and the journal counts how often
            log.exception("task.broken", task_id=lease.task)
        return Return(reason="internal_error: a defect of ours; the worker's log has it", delay_s=pause_s(lease.delivery))

    def _watched(self) -> Tools:
        """The tools, with an eye on limits of the owner that pass."""

        async def generate(prompt: Prompt) -> Candidates:
            try:
                return await self._tools.generate(prompt)
            except BudgetExhausted:
                raise
            except RateLimited as error:
                self._limited = error
                raise

        return replace(self._tools, generate=generate)

    # -- the end --

    async def _say(self, ending: Ending) -> None:
        """Until it is heard: the journal takes the same ending as often as it is told."""
        lease = self._held.lease
        while True:
            try:
                word = await self._said(ending)
            except DeliveryOver:
                word = "over"
            except AtlasError as error:
                log.info("task.not_ended", task_id=lease.task, reason=error.message)
                if self._stopping.is_set():
                    return
                await asyncio.sleep(max(RETRY_S, error.retry_after_s or 0.0))
                continue
            log.info("task.ended", task_id=lease.task, delivery=lease.delivery, how=word)
            return

    async def _said(self, ending: Ending) -> str:
        if isinstance(ending, Answer):
            events = await self._teller.rest()  # once: whether a lost answer had brought them nobody knows
            return (await self._held.call(Finish, events=events, **msgspec.structs.asdict(ending))).finish or ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_S):
                await self._teller.told()
        timeout_s = LAST_WORD_S if self._stopping.is_set() else None
        answer = await self._held.call(GiveBack, timeout_s=timeout_s, **msgspec.structs.asdict(ending))
        return "given back" if answer.is_done else "over"


async def before(work: Coroutine[Any, Any, T], *events: asyncio.Event) -> T | None:
    """The result of `work`; None if one of the events came before it, and `work` has been cancelled."""
    working = asyncio.create_task(work)
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait((working, *waiting), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, *waiting):
            await ended(task)


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel, and wait until it is over; a failure of its own is raised."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
