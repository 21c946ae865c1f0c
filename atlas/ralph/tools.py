"""What the loop is given: everything with an effect, each as one argument, so that a better one takes its place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from atlas.errors import SandboxRefused
from atlas.ralph.policy import Policy, mixed
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


class Candidates(Protocol):
    """The answer to one prompt while it is being made; what `engine.Group` is."""

    def __aiter__(self) -> AsyncIterator[Delta]:
        """News of all candidates, for whoever wants to look while they decode."""
        ...

    def finished(self) -> AsyncIterator[Generation]:
        """Each candidate as it ends; raises what made all of them fail."""
        ...

    def cancel(self, indices: Sequence[int] | None = None) -> None:
        """Stop all, or these; each still ends."""
        ...


async def fixed_route(request: Request) -> Route:
    """The same effort for everything."""
    return Route()


async def carried_context(request: Request) -> Sequence[Snippet]:
    """What the request brings along."""
    return request.context


async def in_order_of_arrival(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """First come, first shown."""
    return sorted(candidates, key=lambda candidate: candidate.ended_s)


async def no_projects(check: ProjectCheck) -> ProjectVerdict:
    """Of whoever cannot reach the project's files."""
    raise SandboxRefused("changes to projects are not judged here")


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What solving needs of the world. Every failure of these is ours, and is raised as an AtlasError.

    Attributes:
        generate: starts the candidates of a prompt.
        run: runs a program in the sandbox; cancelling the call ends the run.
        check: judges an edit of a project.
        route: how much effort a request is worth; asked only if the request does not say.
        context: what the model should read first.
        rank: the likeliest first.
        policy: what comes after an attempt; pure.
        clock: seconds, monotonic.
        sleep: waits for so many seconds.
    """

    generate: Callable[[Prompt], Awaitable[Candidates]]
    run: Callable[[Program, RunLimits], Awaitable[Execution]]
    check: Callable[[ProjectCheck], Awaitable[ProjectVerdict]] = no_projects
    route: Callable[[Request], Awaitable[Route]] = fixed_route
    context: Callable[[Request], Awaitable[Sequence[Snippet]]] = carried_context
    rank: Callable[[Sequence[Candidate]], Awaitable[Sequence[Candidate]]] = in_order_of_arrival
    policy: Policy = mixed
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
