"""Candidates for a worker: admitted, paid for and queued like anybody's, and told as they grow and end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec.structs import replace

from atlas.engine import Group
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.exchange import still_loading
from atlas.gateway.held_task import HeldTask
from atlas.gateway.task_money import InnerRequest
from atlas.types import Delta, Generation, Prompt
from atlas.workline import Generate, News

TELL_EVERY_S = 0.2  # how long texts are gathered: whoever watches them looks for repetition only (chosen)


class Generating:
    """One Generate of a worker."""

    def __init__(self, deps: GatewayDeps, held: HeldTask, call: Generate, say: Callable[[News], Awaitable[None]]) -> None:
        self._deps, self._held, self._call, self._say = deps, held, call, say
        self._inner: InnerRequest | None = None
        self._is_cancelled = False
        self._grown: dict[int, Delta] = {}

    async def run(self) -> None:
        """Until all candidates have ended and were told; cancelled, they end.

        Raises:
            AtlasError: what the engine, the queue or the owner's limits have against it.
        """
        engine = self._deps.engines().get(self._held.model)
        if engine is None:  # it has been unloaded since: the task is given back, and begins anew with another
            raise still_loading()
        inner = self._inner = await self._held.metered.begin(engine, self._prompt())
        state: Any = "failed"
        try:
            await self._say(News(id=self._call.id))  # the prompt is taken
            if self._is_cancelled:
                inner.stop()
            await inner.started()
            await self._tell(inner.groups)
            state = "completed"
        except asyncio.CancelledError:
            state = "aborted"
            raise
        finally:
            await self._held.metered.end(inner, state)

    def cancel(self, indices: tuple[int, ...] | None) -> None:
        """Stop all candidates, or these once they have begun."""
        if indices is None:
            self._is_cancelled = True
            if self._inner is not None:
                self._inner.stop()
        elif self._inner is not None:
            for group in self._inner.groups:
                group.cancel([index for index in indices if 0 <= index < group.num_candidates])

    def _prompt(self) -> Prompt:
        """As the worker wants it, for the task's owner."""
        task, prompt = self._held.task, self._call.prompt
        bounds = [prompt.deadline_s, None if task.deadline is None else max(0.0, task.deadline - time.time())]
        deadline_s = min((bound for bound in bounds if bound is not None), default=None)
        return replace(prompt, owner=task.owner, priority=task.priority, deadline_s=deadline_s, allowance_tokens=None)

    async def _tell(self, groups: list[Group]) -> None:
        if not groups:  # stopped while it waited for a place
            model = self._call.prompt.model
            ended = [Generation(index=at, text="", finish_reason="abort", model=model) for at in range(self._call.prompt.n)]
            await self._say(News(id=self._call.id, generations=tuple(ended)))
            return
        [group] = groups
        watching = [asyncio.create_task(self._gather(group)), asyncio.create_task(self._tell_growth())]
        try:
            async for generation in group.finished():
                await self._say(News(id=self._call.id, deltas=self._taken(), generations=(generation,)))
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)  # what made the group fail, `finished` has raised

    async def _gather(self, group: Group) -> None:
        """Join what each candidate gains."""
        async for delta in group:
            before = self._grown.get(delta.index)
            text, reasoning = (before.text, before.reasoning) if before else ("", "")
            self._grown[delta.index] = Delta(index=delta.index, text=text + delta.text, reasoning=reasoning + delta.reasoning)

    async def _tell_growth(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            if deltas := self._taken():
                await self._say(News(id=self._call.id, deltas=deltas))

    def _taken(self) -> tuple[Delta, ...]:
        grown, self._grown = self._grown, {}
        return tuple(grown.values())
