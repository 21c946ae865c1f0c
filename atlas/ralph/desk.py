"""What one run knows and has used so far, and its way to the tools: what fails there is told, waited for and tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from atlas.errors import AtlasError
from atlas.ralph.patience import our_failure, persist
from atlas.ralph.tools import Tools
from atlas.ralph.visible import Suite
from atlas.types import Attempt, Candidate, CandidateRef, Event, ProjectVerdict, Request, Route, Snippet, WorkRetried

T = TypeVar("T")


class Desk:
    """The state of one run. Written by its loop and its rounds, all in one event loop.

    Attributes:
        entry_point: what is asked for, as far as it is known.
        suite: None until there are tests.
        seen: fingerprints of the programs that were read, and whose they were.
        verdicts: of a project's edits, the last of each.
        num_tokens: generated, tests included.
        sandbox_s: time of tests, confirmations included.
    """

    def __init__(self, request: Request, tools: Tools, emit: Callable[[Event], None]) -> None:
        self.request, self.tools, self.emit = request, tools, emit
        self.route = request.route or Route()
        self.context: Sequence[Snippet] = ()
        self.entry_point = request.entry_point
        self.suite: Suite | None = None
        self.attempts: list[Attempt] = []
        self.seen: dict[str, CandidateRef] = {}
        self.verdicts: dict[str, ProjectVerdict] = {}
        self.num_tokens = 0
        self.num_retries = 0
        self.sandbox_s = 0.0
        self._started_s = tools.clock()

    @property
    def now_s(self) -> float:
        """Since the run began."""
        return self.tools.clock() - self._started_s

    @property
    def left_s(self) -> float | None:
        """Until the deadline; None if there is none."""
        deadline_s = self.request.deadline_s
        return None if deadline_s is None else max(0.0, deadline_s - self.now_s)

    @property
    def left_tokens(self) -> int | None:
        bound = self.request.max_tokens
        return None if bound is None else max(0, bound - self.num_tokens)

    @property
    def candidates(self) -> list[Candidate]:
        """Of all attempts that have ended, in order."""
        return [candidate for attempt in self.attempts for candidate in attempt.candidates]

    def spent(self) -> str:
        """What is used up: deadline, tokens, sandbox_s, or nothing."""
        if self.left_s == 0.0:
            return "deadline"
        if self.left_tokens == 0:
            return "tokens"
        bound_s = self.request.max_sandbox_s
        return "sandbox_s" if bound_s is not None and self.sandbox_s >= bound_s else ""

    async def ours(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a tool.

        Raises:
            AtlasError: it failed, again and again.
        """

        async def on_failure(error: AtlasError, after_s: float) -> None:
            self.num_retries += 1
            self.emit(WorkRetried(at_s=self.now_s, what=what, failure=our_failure(error), after_s=after_s))
            await self.tools.sleep(after_s)

        return await persist(call, on_failure)


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Do all of these at once; the first failure ends the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failures:
        raise first_of(failures) from None


def first_of(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure inside nested groups."""
    first = failures.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
