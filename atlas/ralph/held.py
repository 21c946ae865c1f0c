"""A task that this worker holds, and the tools of its solving: each one a call to the server that leased it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from atlas.errors import Unavailable
from atlas.ralph.line import Line
from atlas.ralph.tools import Tools
from atlas.types import (
    Candidate,
    Delta,
    Execution,
    Generation,
    Program,
    ProjectCheck,
    ProjectVerdict,
    Prompt,
    Request,
    Route,
    RunLimits,
    Snippet,
)
from atlas.workline import AskContext, AskRoute, Beat, Done, Generate, JudgeEdit, Leased, News, Rank, RunCode, TaskCall

ANSWER_S = 30.0  # for what is answered at once (chosen); a ledger that is stuck takes 5
BEATS_PER_LEASE = 3
FIRST_BEAT_S = 0.25  # what is asked for until then says as well that the worker has its task (chosen)
KNOWN_DELTAS = 10_000  # of a group that nobody looks at

C = TypeVar("C", bound=TaskCall)
RunProgram = Callable[[Program, RunLimits], Awaitable[Execution]]


class Held:
    """One delivery of a task, as its worker speaks of it.

    Attributes:
        is_cancelled: it is to be stopped, and finished as cancelled.
        is_lost: it is over; nothing that is said about it counts any more.
    """

    def __init__(self, line: Line, lease: Leased) -> None:
        self._line, self.lease = line, lease
        self.is_cancelled, self.is_lost = asyncio.Event(), asyncio.Event()

    async def call(self, kind: type[C], *, timeout_s: float | None = ANSWER_S, **fields: Any) -> Done:
        """Ask something about this task. Raises as `Line.ask`."""
        return await self._line.ask(self._making(kind, **fields), timeout_s=timeout_s)

    async def keep(self) -> None:
        """Be heard of three times a lease, until the task is lost; what is done by then needs no beat."""
        every_s = self._line.welcome.lease_s / BEATS_PER_LEASE
        with self._line.heeding(self.lease.task, self.lease.delivery, self._order):
            await asyncio.sleep(min(FIRST_BEAT_S, every_s))
            while not self.is_lost.is_set():
                with contextlib.suppress(Unavailable):  # nobody knows; go on
                    self._order((await self.call(Beat, timeout_s=2 * every_s)).standing)
                await asyncio.sleep(every_s)

    def _order(self, standing: str | None) -> None:
        if standing == "cancelled":
            self.is_cancelled.set()
        elif standing == "lost":
            self.is_lost.set()

    def tools(self, run: RunProgram | None) -> Tools:
        """What `solve_task` needs; `run` is a sandbox of the worker's own, if there is one."""
        return Tools(
            generate=self._generate,
            run=run or self._run,
            check=self._check,
            route=self._route,
            context=self._context,
            rank=self._rank,
        )

    def _making(self, kind: type[C], **fields: Any) -> Callable[[int], C]:
        return lambda number: kind(id=number, task=self.lease.task, delivery=self.lease.delivery, **fields)

    async def _generate(self, prompt: Prompt) -> RemoteCandidates:
        candidates = RemoteCandidates(self._line, self._making(Generate, prompt=prompt))
        try:
            await candidates.begun()
        except asyncio.CancelledError:
            candidates.drop()
            raise
        return candidates

    async def _run(self, program: Program, limits: RunLimits) -> Execution:
        execution = (await self.call(RunCode, timeout_s=None, program=program, limits=limits)).execution
        assert execution is not None
        return execution

    async def _check(self, check: ProjectCheck) -> ProjectVerdict:
        verdict = (await self.call(JudgeEdit, timeout_s=None, edit=check.edit)).verdict
        assert verdict is not None
        return verdict

    async def _route(self, request: Request) -> Route:
        route = (await self.call(AskRoute)).route
        assert route is not None
        return route

    async def _context(self, request: Request) -> Sequence[Snippet]:
        return (*request.context, *(await self.call(AskContext)).context)

    async def _rank(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        if len(candidates) < 2:
            return candidates
        shown = tuple(replace(candidate, execution=None, failure=None) for candidate in candidates)
        order = (await self.call(Rank, candidates=shown)).order
        return [candidates[at] for at in order]


class RemoteCandidates:
    """The candidates of one prompt, which decode at the server; as `engine.Group`."""

    def __init__(self, line: Line, make: Callable[[int], Generate]) -> None:
        self._line = line
        self._number = 0
        self._deltas: list[Delta] = []
        self._generations: list[Generation] = []
        self._error: Exception | None = None
        self._is_over = self._is_begun = False
        self._changed = asyncio.Event()
        self._hearing = asyncio.create_task(self._hear(make))

    async def begun(self) -> None:
        """Wait until the server has taken the prompt. Raises what it refuses it with."""
        while not (self._is_begun or self._is_over):
            await self._news()
        if self._error is not None and not self._is_begun:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while True:
            deltas, self._deltas = self._deltas, []
            for delta in deltas:
                yield delta
            if self._is_over:
                break
            await self._news()
        self._raise()

    async def finished(self) -> AsyncIterator[Generation]:
        seen = 0
        while True:
            while seen < len(self._generations):
                seen += 1
                yield self._generations[seen - 1]
            if self._is_over:
                break
            await self._news()
        self._raise()

    def cancel(self, indices: Sequence[int] | None = None) -> None:
        if not self._is_over:
            self._line.cancel(self._number, None if indices is None else tuple(indices))

    def drop(self) -> None:
        """Nobody will read them."""
        self._hearing.cancel()

    async def _hear(self, make: Callable[[int], Generate]) -> None:
        try:
            async for answer in self._line.follow(make, self._numbered):
                self._is_begun = True
                if isinstance(answer, News):
                    self._deltas += answer.deltas
                    self._generations += answer.generations
                self._tell()
        except Exception as error:  # AtlasError; a defect likewise ends those who read
            self._error = error
        finally:
            self._is_over = True
            self._tell()

    def _numbered(self, number: int) -> None:
        self._number = number

    def _tell(self) -> None:
        if len(self._deltas) > KNOWN_DELTAS:
            del self._deltas[:]
        self._changed.set()

    async def _news(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
