"""The answer to one prompt while it is being made: n candidates, streamed together, each handed on the moment it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from atlas.types import Delta, Generation

Cancel = Callable[[frozenset[int]], None]


class Group:
    """n candidates of one prompt. Created by an engine; read by whoever submitted.

    The engine calls `put`, `finish` and `fail` in the event loop's thread; readers iterate. The deltas can be read once;
    `finished()` yields every Generation to each of its readers. A group nobody reads holds at most n * max_tokens small values.

    Attributes:
        num_candidates: how many candidates will finish; indices are 0..num_candidates-1.
        prompt_tokens: length of the prompt in tokens.
        cached_tokens: how many of them came from a shared prefix; known once the first candidate starts.
        is_started: whether the prompt has left the queue.
        generations: the candidates that have finished so far, in the order they did.
    """

    def __init__(self, num_candidates: int, *, prompt_tokens: int, cancel: Cancel) -> None:
        self.num_candidates = num_candidates
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.is_started = False
        self.generations: list[Generation] = []
        self._cancel = cancel
        self._deltas: list[Delta] = []
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    @property
    def is_done(self) -> bool:
        """Whether every candidate has finished or the group has failed."""
        return self._error is not None or len(self.generations) == self.num_candidates

    def cancel(self, indices: Sequence[int] | None = None) -> None:
        """Stop all candidates, or these; each still ends with finish reason "abort". Idempotent, returns at once."""
        self._cancel(frozenset(range(self.num_candidates) if indices is None else indices))

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Deltas of all candidates in the order they came. Raises what made the group fail."""
        while True:
            deltas, self._deltas = self._deltas, []
            for delta in deltas:
                yield delta
            if not self._deltas:
                if self.is_done:
                    break
                await self._wait()
        self._raise()

    async def finished(self) -> AsyncIterator[Generation]:
        """Each candidate as it ends. Raises what made the group fail."""
        seen = 0
        while True:
            while seen < len(self.generations):
                seen += 1
                yield self.generations[seen - 1]
            if self.is_done:
                break
            await self._wait()
        self._raise()

    async def all(self) -> list[Generation]:
        """Wait for every candidate; in index order."""
        generations = [generation async for generation in self.finished()]
        return sorted(generations, key=lambda generation: generation.index)

    # -- the engine's side --

    def start(self, cached_tokens: int) -> None:
        self.is_started = True
        self.cached_tokens = cached_tokens
        self._wake()

    def put(self, deltas: Iterable[Delta]) -> None:
        self._deltas.extend(deltas)
        self._wake()

    def finish(self, generation: Generation) -> None:
        self.generations.append(generation)
        self._wake()

    def fail(self, error: Exception) -> None:
        if not self.is_done:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self) -> None:
        await self._changed.wait()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
