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

    A candidate that has generated its allowance is parked: it computes nothing, keeps what it has, and still obeys its deadline
    and `cancel`. `allow` lets it go on, `end` says that nothing more will be allowed.

    Attributes:
        num_candidates: how many candidates will finish; indices are 0..num_candidates-1.
        allowance_tokens: how many tokens each candidate may have generated; None is no bound.
        is_ended: the allowance will not be raised any more.
        end_reason: why, in the words of whoever called `end`.
        uncounted_tokens: generated beyond what was counted per candidate; only a remote engine's peer knows of such.
        prompt_tokens: length of the prompt in tokens.
        cached_tokens: how many of them came from a shared prefix; known once the first candidate starts.
        is_started: whether the prompt has left the queue.
        generations: the candidates that have finished so far, in the order they did.
        on_failure: told what the group fails with, if it does.
    """

    def __init__(
        self,
        num_candidates: int,
        *,
        prompt_tokens: int,
        cancel: Cancel,
        allowance_tokens: int | None = None,
        on_allowance: Callable[[], None] | None = None,
    ) -> None:
        self.num_candidates = num_candidates
        self.allowance_tokens = allowance_tokens
        self.is_ended = False
        self.end_reason = ""
        self.uncounted_tokens = 0
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.is_started = False
        self.generations: list[Generation] = []
        self.on_failure: Callable[[Exception], None] | None = None
        self._cancel = cancel
        self._on_allowance = on_allowance
        self._num_tokens = [0] * num_candidates
        self._deltas: list[Delta] = []
        self._unread: list[Delta] = []  # of those that its reader has taken, the next one last
        self._error: Exception | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._milestones: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def is_done(self) -> bool:
        """Whether every candidate has finished or the group has failed."""
        return self._error is not None or len(self.generations) == self.num_candidates

    @property
    def has_more(self) -> bool:
        """Whether its reader will get another delta that ends no candidate without waiting."""
        return any(delta.finish_reason is None for delta in (self._unread[-1:] or self._deltas[:1]))

    @property
    def num_generated(self) -> int:
        """Most tokens any candidate has generated so far; a remote engine's count is a lower bound until its peer says more."""
        return max(self._num_tokens)

    @property
    def completion_tokens(self) -> int:
        """Tokens all candidates have generated so far, as `num_generated` counts them."""
        return sum(self._num_tokens) + self.uncounted_tokens

    def cancel(self, indices: Sequence[int] | None = None) -> None:
        """Stop all candidates, or these; each still ends with finish reason "abort". Idempotent, returns at once."""
        self._cancel(frozenset(range(self.num_candidates) if indices is None else indices))

    def allow(self, tokens_per_candidate: int | None) -> None:
        """Raise the allowance (None: no bound). It never falls, and stays as it is after `end`."""
        now = self.allowance_tokens
        if self.is_ended or now is None or (tokens_per_candidate is not None and tokens_per_candidate <= now):
            return
        self.allowance_tokens = tokens_per_candidate
        self._tell_allowance()

    def end(self, reason: str = "") -> None:
        """Nothing more will be allowed: each candidate ends at its allowance, with finish reason "length". Idempotent.

        A group without an allowance has nothing to end at.
        """
        if self.is_ended:
            return
        self.is_ended, self.end_reason = True, reason
        self._tell_allowance()

    async def reached(self, num_tokens: int) -> bool:
        """Wait until a candidate has generated `num_tokens`; False if the group was done before."""
        if self.num_generated < num_tokens and not self.is_done:
            passed = asyncio.get_running_loop().create_future()
            self._milestones.append((num_tokens, passed))
            await passed
        return self.num_generated >= num_tokens

    async def begun(self) -> None:
        """Wait for the first of its answer, without reading it, or its end. Raises what made it fail before there was any."""
        while not self._deltas and not self.is_done:
            await self.changed()
        if not self._deltas:
            self._raise()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Deltas of all candidates in the order they came. Raises what made the group fail."""
        while True:
            self._unread, self._deltas = self._deltas[::-1], []
            while self._unread:
                yield self._unread.pop()
            if not self._deltas:
                if self.is_done:
                    break
                await self.changed()
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
            await self.changed()
        self._raise()

    async def all(self) -> list[Generation]:
        """Wait for every candidate; in index order."""
        while not self.is_done:
            await self.changed()
        self._raise()
        return sorted(self.generations, key=lambda generation: generation.index)

    # -- the engine's side --

    def start(self, cached_tokens: int) -> None:
        self.is_started = True
        self.cached_tokens = cached_tokens
        self._wake()

    def put(self, deltas: Iterable[Delta], counts: Iterable[tuple[int, int]] = ()) -> None:
        """Hand on deltas, and how many tokens candidates have by now: pairs of index and number."""
        self._deltas.extend(deltas)
        for index, num_tokens in counts:
            self._num_tokens[index] = num_tokens
        self._wake()

    def finish(self, generation: Generation) -> None:
        self.generations.append(generation)
        self._num_tokens[generation.index] = generation.num_tokens
        self._wake()

    def fail(self, error: Exception) -> None:
        if not self.is_done:
            self._error = error
            if self.on_failure is not None:
                self.on_failure(error)
            self._wake()

    async def allowed(self, num_tokens: int) -> bool:
        """Wait until a candidate that has `num_tokens` may have another; False if it must end instead."""
        while self.is_spent(num_tokens):
            if self.is_ended:
                return False
            await self.changed()
        return True

    def is_spent(self, num_tokens: int) -> bool:
        """Whether a candidate that has `num_tokens` has used up its allowance."""
        return self.allowance_tokens is not None and num_tokens >= self.allowance_tokens

    async def changed(self) -> None:
        """Wait for anything new: deltas, an end, another allowance."""
        change = asyncio.get_running_loop().create_future()
        self._waiting.append(change)
        await change

    def _tell_allowance(self) -> None:
        if self._on_allowance is not None:
            self._on_allowance()
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            _resolve(change)
        if self._milestones:
            self._pass_milestones()

    def _pass_milestones(self) -> None:
        """Not one task switch per step for whoever waits for the hundredth token."""
        reached, milestones = self.num_generated, self._milestones
        self._milestones = [entry for entry in milestones if entry[0] > reached and not self.is_done]
        for num_tokens, passed in milestones:
            if num_tokens <= reached or self.is_done:
                _resolve(passed)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # its waiter may have been cancelled
        future.set_result(None)
