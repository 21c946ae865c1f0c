"""The pool process: owns every slot of the machine, and runs what its clients ask for.

    python -m atlas.sandbox.pool OWNER_FD LISTEN_FD CONFIGURATION

It ends when the connection of its owner closes. LISTEN_FD (-1: none) is a listening socket for further clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog
import uvloop

from atlas.errors import AtlasError, SandboxRefused, SandboxUnavailable
from atlas.log import configure_logging
from atlas.sandbox.boxes import Boxes
from atlas.sandbox.grade import execute
from atlas.sandbox.languages import available
from atlas.sandbox.project import Projects
from atlas.sandbox.slots import Slots
from atlas.sandbox.statistics import Statistics
from atlas.sandbox.tiers import Choice, choose
from atlas.sandbox.wire import AskStatus, Cancel, Check, Connection, Done, Failed, PoolConfiguration, Question, Run
from atlas.types import Execution, Program, ProjectCheck, ProjectVerdict, RunLimits, SandboxStatus

log = structlog.get_logger("atlas.sandbox")

T = TypeVar("T")

GC_THRESHOLDS = (10_000, 20, 20)  # a run makes some hundred objects and few cycles, as in app.py
WARM_AFTER_S = 3.0  # a server that has just been started has a model to load; whoever comes earlier starts what they need


class Pool:
    """Slots, queue and tier. Used from one event loop."""

    def __init__(self, configuration: PoolConfiguration) -> None:
        self._settings = configuration.settings
        self._choosing = asyncio.ensure_future(choose(configuration.settings, is_unsafe=configuration.is_unsafe))
        self._choosing.add_done_callback(self._say)
        self._slots: Slots | None = None
        self._projects: Projects | None = None
        self._warming: asyncio.Task[None] | None = None
        self._statistics = Statistics()

    async def choice(self) -> Choice:
        """The tier, once it is known."""
        return await asyncio.shield(self._choosing)

    async def execute(self, program: Program, limits: RunLimits) -> Execution:
        """Run a program when there is a slot.

        Raises:
            SandboxRefused: nothing here isolates as the settings demand.
            SandboxOverloaded: too many wait already.
            SandboxUnavailable: a failure of ours, twice.
            BadRequest: the program makes no sense.
        """
        asked_s = time.monotonic()
        async with self._slot() as boxes:
            queue_s = time.monotonic() - asked_s
            execution = await twice(lambda: execute(program, limits, boxes))
        self._statistics.count(program.mode, execution.outcome, execution.wall_s)
        return msgspec.structs.replace(execution, queue_s=queue_s)

    async def check(self, check: ProjectCheck) -> ProjectVerdict:
        """Judge a change to a project when there is a slot; raises as `execute` does."""
        async with self._slot() as boxes:
            projects = self._projects = self._projects or Projects(boxes)
            verdict = await twice(lambda: projects.check(check))
        self._statistics.count("project", verdict.outcome, verdict.after.wall_s if verdict.after else 0.0)
        return verdict

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[Boxes]:
        try:
            boxes = await self._boxes()
            async with self._queue(boxes):
                yield boxes
        except AtlasError as error:
            self._statistics.refusals[error.code] += 1
            raise

    async def _boxes(self) -> Boxes:
        choice = await self.choice()
        if choice.boxes is None:
            raise SandboxRefused(f"code is not run here: {choice.reason}; `atlas doctor` says what to do")
        return choice.boxes

    def _queue(self, boxes: Boxes) -> Slots:
        if self._slots is None:
            self._slots = Slots(boxes.slots, max_waiting=self._settings.max_waiting)
        return self._slots

    async def status(self) -> SandboxStatus:
        choice = await self.choice()
        slots, boxes, seen = self._slots, choice.boxes, self._statistics
        return SandboxStatus(
            tier=choice.tier,
            reason=choice.reason,
            layers=choice.layers,
            slots=boxes.slots if boxes else 0,
            running=slots.running if slots else 0,
            waiting=slots.waiting if slots else 0,
            zygotes=boxes.num_zygotes if boxes else 0,
            zygote_restarts=boxes.num_restarts if boxes else 0,
            outcomes=dict(seen.outcomes),
            refusals=dict(seen.refusals),
            p50_s=seen.quantile_s(0.5),
            p95_s=seen.quantile_s(0.95),
            slowest=tuple(seen.slowest()),
            languages=available(),
        )

    def _say(self, choosing: asyncio.Future[Choice]) -> None:
        if not choosing.cancelled() and not choosing.exception():
            choice = choosing.result()
            if choice.boxes is not None:
                self._warming = asyncio.create_task(self._warm_up(choice.boxes))
            (log.info if choice.tier else log.warning)("sandbox.chosen", tier=choice.tier, reason=choice.reason)

    async def _warm_up(self, boxes: Boxes) -> None:
        await asyncio.sleep(WARM_AFTER_S)
        try:
            await boxes.warm_up()
        except SandboxUnavailable as error:
            log.warning("sandbox.not_warm", reason=error.message)

    async def close(self) -> None:
        self._choosing.cancel()
        if self._warming:
            self._warming.cancel()
        with contextlib.suppress(asyncio.CancelledError, AtlasError):
            if (choice := await self._choosing).boxes is not None:
                await choice.boxes.close()


async def twice(attempt: Callable[[], Awaitable[T]]) -> T:
    """A failure of ours says nothing about the program: it is tried once more."""
    try:
        return await attempt()
    except SandboxUnavailable as error:
        log.warning("sandbox.failed", reason=error.message)
        return await attempt()


class Client:
    """One connection: what it asked for ends with it."""

    def __init__(self, pool: Pool, on_close: Callable[[], None] = lambda: None) -> None:
        self._pool = pool
        self._on_close = on_close
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.connection = Connection(Question, self._hear, self._lose)

    def _hear(self, question: Question) -> None:
        if isinstance(question, Cancel):
            if task := self._tasks.get(question.id):
                task.cancel()
            return
        task = asyncio.create_task(self._answer(question))
        self._tasks[question.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(question.id, None))

    async def _answer(self, question: Run | Check | AskStatus) -> None:
        try:
            self.connection.send(await self._ask(question))
        except AtlasError as error:
            self.connection.send(failed(question.id, error))
        except Exception as error:  # a bug of ours: the client must hear that it was ours, and the log what it was
            log.exception("sandbox.broke")
            self.connection.send(failed(question.id, SandboxUnavailable(f"the sandbox broke: {type(error).__name__}")))

    async def _ask(self, question: Run | Check | AskStatus) -> Done:
        match question:
            case Run(id=number, program=program, limits=limits):
                return Done(id=number, execution=await self._pool.execute(program, limits))
            case Check(id=number, check=check):
                return Done(id=number, verdict=await self._pool.check(check))
            case AskStatus(id=number):
                return Done(id=number, status=await self._pool.status())

    def _lose(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._on_close()


def failed(question_id: int, error: AtlasError) -> Failed:
    return Failed(id=question_id, code=error.code, message=error.message, param=error.param, retry_after_s=error.retry_after_s)


async def serve(owner_fd: int, listen_fd: int, configuration: PoolConfiguration) -> None:
    """Until the owner is gone, or SIGTERM."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the owner has had it too
    pool = Pool(configuration)
    await loop.connect_accepted_socket(lambda: Client(pool, stopping.set).connection, socket.socket(fileno=owner_fd))
    server = None
    if listen_fd >= 0:
        listener = socket.socket(fileno=listen_fd)
        server = await loop.create_unix_server(lambda: Client(pool).connection, sock=listener)
    await stopping.wait()
    if server is not None:
        server.close()
    await pool.close()


def main() -> None:
    owner_fd, listen_fd, text = sys.argv[1:4]
    configuration = msgspec.json.decode(text, type=PoolConfiguration)
    configure_logging(configuration.log.level, form=configuration.log.format)
    gc.collect()
    gc.freeze()  # what was imported stays for good: a tenth of the pool's time went into looking at it again and again
    gc.set_threshold(*GC_THRESHOLDS)
    uvloop.run(serve(int(owner_fd), int(listen_fd), configuration))


if __name__ == "__main__":
    main()
