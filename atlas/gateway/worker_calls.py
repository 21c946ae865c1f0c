"""One worker's connection: each of its calls is answered by a task of its own, and there are only so many."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from atlas.errors import AtlasError, DeliveryOver, SandboxUnavailable
from atlas.gateway.submissions import fixed_route
from atlas.gateway.worker_generating import Generating
from atlas.gateway.workers import Workers
from atlas.ralph import read_request
from atlas.store import Delivery, Ending, Standing
from atlas.workline import (
    VERSION,
    AskContext,
    AskLease,
    AskRoute,
    Beat,
    Call,
    CancelCandidates,
    Done,
    Drop,
    Failed,
    Finish,
    Frames,
    Generate,
    GiveBack,
    Hello,
    JudgeEdit,
    Leased,
    Message,
    PutEvents,
    PutStep,
    Rank,
    Refused,
    RunCode,
    Stop,
    TaskCall,
    Welcome,
    WorkerSays,
    encoded,
    failed,
    worker_said,
)

log = structlog.get_logger("atlas.workers")

WORKER = re.compile(r"[\w.-]{1,64}", re.ASCII)
HELLO_TIMEOUT_S = 10.0
MAX_WAIT_S = 30.0  # for a task; a worker asks again
MAX_CALLS = 512  # open at a time; a worker has one for each candidate and a few more (chosen)
IDLE_LEASES, MIN_IDLE_S = 2, 30.0  # a worker that says nothing for so long is gone: it beats, or asks for a task
BROKEN = "a defect of ours; the server's log has its traceback"


class Conversation:
    """From Hello to the end of the connection.

    Args:
        is_near: the worker is on this machine, and of the same user.
    """

    def __init__(self, workers: Workers, frames: Frames, *, is_near: bool) -> None:
        self.worker = ""
        self.is_near = is_near
        self._workers, self._frames = workers, frames
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._generating: dict[int, Generating] = {}
        self._orders: set[asyncio.Task[None]] = set()
        self._handlers: dict[type[Call], Callable[[Any], Awaitable[Done]]] = {
            AskLease: self._lease,
            Beat: self._beat,
            PutEvents: self._put_events,
            PutStep: self._put_step,
            Finish: self._finish,
            GiveBack: self._give_back,
            Generate: self._generate,
            RunCode: self._run,
            JudgeEdit: self._judge,
            AskRoute: self._route,
            AskContext: self._context,
            Rank: self._rank,
        }

    async def run(self) -> None:
        """Until the worker leaves, is silent for too long, or says what is not of the protocol."""
        try:
            if await self._is_welcome():
                self._workers.joined(self)
                await self._listen()
        except (OSError, msgspec.MsgspecError, TimeoutError) as error:
            log.warning("worker.cut", worker=self.worker, reason=str(error) or "it said nothing for too long")
        finally:
            await self._over()

    def order(self, delivery: Delivery, standing: Standing) -> None:
        """Tell that a delivery is to stop, or is over."""
        if standing != "held":
            order = asyncio.create_task(self._say(Stop(task=delivery.task_id, delivery=delivery.number, standing=standing)))
            self._orders.add(order)
            order.add_done_callback(self._orders.discard)

    def close(self) -> None:
        """End it; `run` returns."""
        self._frames.close()

    async def _is_welcome(self) -> bool:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            frame = await self._frames.read()
        hello = worker_said(frame) if frame is not None else None
        if not isinstance(hello, Hello):
            return False
        if hello.version != VERSION:
            message = f"this worker speaks version {hello.version}, the server {VERSION}; install the same ATLAS on both"
            await self._say(Refused(message=message))
            return False
        if not WORKER.fullmatch(hello.worker):
            await self._say(Refused(message="a worker's name has 1 to 64 characters out of letters, digits, '.', '_' and '-'"))
            return False
        self.worker = hello.worker
        deps = self._workers.deps
        sandbox = deps.sandbox_socket if self.is_near else ""
        await self._say(Welcome(lease_s=deps.settings.tasks.lease_s, sandbox=sandbox))
        return True

    async def _listen(self) -> None:
        idle_s = max(MIN_IDLE_S, IDLE_LEASES * self._workers.deps.settings.tasks.lease_s)
        while True:
            async with asyncio.timeout(idle_s):
                frame = await self._frames.read()
            if frame is None:
                return
            self._hear(worker_said(frame))

    def _hear(self, said: WorkerSays) -> None:
        if isinstance(said, Drop):
            if said.id in self._calls:
                self._calls[said.id].cancel()
        elif isinstance(said, CancelCandidates):
            if said.id in self._generating:
                self._generating[said.id].cancel(said.indices)
        elif isinstance(said, Hello) or said.id in self._calls or len(self._calls) >= MAX_CALLS:
            raise ConnectionError("it says what it may not say now")
        else:
            task = self._calls[said.id] = asyncio.create_task(self._answer(said))
            task.add_done_callback(lambda _: self._calls.pop(said.id, None))

    async def _answer(self, call: Call) -> None:
        reply: Message
        try:
            reply = await self._handlers[type(call)](call)
        except AtlasError as error:
            reply = failed(call.id, error)
        except Exception:  # a defect: the worker is told, and the log has the rest
            log.exception("worker.call_broken", call=type(call).__name__)
            reply = Failed(id=call.id, code=AtlasError.code, message=BROKEN)
        await self._say(reply)

    async def _say(self, message: Message) -> None:
        try:
            await self._frames.write(encoded(message))
        except OSError:
            self._frames.close()  # whoever listens notices

    async def _over(self) -> None:
        self._frames.close()
        left = [*self._calls.values(), *self._orders]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if self.worker:
            self._workers.left(self)

    # -- calls --

    async def _lease(self, call: AskLease) -> Done:
        lease = await self._workers.lease(self, wait_s=min(max(0.0, call.wait_s), MAX_WAIT_S))
        if lease is None:
            return Done(id=call.id)
        is_first = lease.delivery.number == 1  # before which nobody could finish any step
        steps = {} if is_first else await self._workers.journal.steps(lease.task.id)
        leased = Leased(task=lease.task.id, delivery=lease.delivery.number, kind=lease.task.kind, body=lease.body, steps=steps)
        return Done(id=call.id, lease=leased)

    async def _beat(self, call: Beat) -> Done:
        return Done(id=call.id, standing=await self._workers.heartbeat(self, delivery_of(call)))

    async def _put_events(self, call: PutEvents) -> Done:
        await self._workers.find(self, delivery_of(call))
        if call.bodies and await self._workers.journal.put_events(delivery_of(call), *call.bodies) is None:
            raise _over(call)
        return Done(id=call.id)

    async def _put_step(self, call: PutStep) -> Done:
        await self._workers.find(self, delivery_of(call))
        if not await self._workers.journal.put_step(delivery_of(call), call.step, call.body):
            raise _over(call)
        return Done(id=call.id)

    async def _finish(self, call: Finish) -> Done:
        ending = Ending(outcome=call.outcome, reason=call.reason, result=call.result, sandbox_s=max(0.0, call.sandbox_s))
        return Done(id=call.id, finish=await self._workers.finish(self, delivery_of(call), ending, events=call.events))

    async def _give_back(self, call: GiveBack) -> Done:
        is_done = await self._workers.give_back(
            self,
            delivery_of(call),
            reason=call.reason,
            delay_s=min(max(0.0, call.delay_s), 86_400.0),
            is_excused=call.is_excused,
        )
        return Done(id=call.id, is_done=is_done)

    async def _generate(self, call: Generate) -> Done:
        held = await self._workers.find(self, delivery_of(call))
        generating = self._generating[call.id] = Generating(self._workers.deps, held, call, self._say)
        try:
            await generating.run()
        finally:
            del self._generating[call.id]
        return Done(id=call.id)

    async def _run(self, call: RunCode) -> Done:
        await self._workers.find(self, delivery_of(call))
        sandbox = self._workers.deps.sandbox
        if sandbox is None:
            raise SandboxUnavailable("this server has no sandbox")
        return Done(id=call.id, execution=await sandbox.run(call.program, call.limits))

    async def _judge(self, call: JudgeEdit) -> Done:
        """Of the project that was submitted; the gateway let nobody name one but the owner of the machine."""
        await self._workers.find(self, delivery_of(call))
        deps = self._workers.deps
        assert deps.journal is not None  # there is a lease
        project = read_request(await deps.journal.request(call.task)).project
        if project is None or deps.sandbox is None:
            raise SandboxUnavailable("this task names no project, or this server has no sandbox")
        return Done(id=call.id, verdict=await deps.sandbox.check_project(replace(project, edit=call.edit)))

    async def _route(self, call: AskRoute) -> Done:
        """Fixed, until there is a router."""
        await self._workers.find(self, delivery_of(call))
        return Done(id=call.id, route=fixed_route(self._workers.deps.settings.tasks))

    async def _context(self, call: AskContext) -> Done:
        """Nothing, until there is retrieval."""
        await self._workers.find(self, delivery_of(call))
        return Done(id=call.id)

    async def _rank(self, call: Rank) -> Done:
        """First come, first shown, until there is a lens."""
        await self._workers.find(self, delivery_of(call))
        order = sorted(range(len(call.candidates)), key=lambda at: call.candidates[at].ended_s)
        return Done(id=call.id, order=tuple(order))


def delivery_of(call: TaskCall) -> Delivery:
    return Delivery(task_id=call.task, number=call.delivery)


def _over(call: TaskCall) -> DeliveryOver:
    return DeliveryOver(f"delivery {call.delivery} of task {call.task} is over")
