"""What a task costs: one admission, one reservation, one usage row for each delivery, whatever is generated within it.

A task reserves when its first candidates are to be generated, not when it is submitted: a thousand that wait would else hold a
thousand reservations, through restarts, and keep their owner from chatting meanwhile. From then on every generation is a
portion of the reservation: it goes through the same meter and queue as a request of its own would, and what it takes is added up
here. A delivery that ends in the middle is settled as interrupted; the next one reserves anew, for its own tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from atlas.engine import Engine
from atlas.errors import AtlasError, BudgetExhausted, LimitsUnavailable, RateLimited
from atlas.gateway.charge import Charge
from atlas.gateway.ids import new_id
from atlas.gateway.meter import Meter, MeteredRequest
from atlas.gateway.traffic import Speeds, speeds_of
from atlas.store import Task
from atlas.types import Activity, Principal, Prompt, RequestState, Usage

ROUTE = "/v1/tasks"
WINDOW_PATIENCE_S = 75.0  # a window of limits is a minute long
WINDOW_RETRY_S = 2.0


class TaskCharge:
    """The charge of a task, of which generations have portions. Changed by the event loop only.

    Args:
        make: a charge under an id that was not used before.
    """

    def __init__(self, make: Callable[[], Charge]) -> None:
        self._make = make
        self.whole = make()
        self._open: set[Portion] = set()
        self._prompt_tokens = self._tokens = 0  # used by portions that are closed
        self._changing = asyncio.Lock()

    async def begin(self, portion: Portion) -> None:
        """Reserve for another generation; the first one opens the charge. A minute's limit is waited for.

        Raises:
            BudgetExhausted, RateLimited: the owner has no more.
            LimitsUnavailable, LedgerUnavailable: not now.
        """
        give_up_s = time.monotonic() + WINDOW_PATIENCE_S
        while True:
            async with self._changing:
                reason = await self._raise(portion, portion.tokens) if self.whole.is_reserved else await self._open_for(portion)
                if not reason:
                    self._open.add(portion)
                    return
            if not reason.endswith("_per_minute") or time.monotonic() > give_up_s:
                raise _refusal(reason)
            await asyncio.sleep(WINDOW_RETRY_S)

    async def raise_to(self, portion: Portion, tokens: int) -> str:
        """As `Charge.raise_to`, for a portion."""
        async with self._changing:
            return await self._raise(portion, tokens)

    def end(self, portion: Portion, usage: Usage) -> None:
        """A portion was used in this way, and what it had beyond is free for the next."""
        if portion in self._open:
            self._open.discard(portion)
            self._prompt_tokens += usage.prompt_tokens
            self._tokens += usage.prompt_tokens + usage.completion_tokens

    async def _open_for(self, portion: Portion) -> str:
        try:
            await self.whole.open(portion.prompt_tokens, portion.tokens - portion.prompt_tokens)
        except AtlasError:
            self.whole.release()  # what the limits may hold by now is free again, and the id is used
            self.whole = self._make()
            raise
        return ""

    async def _raise(self, portion: Portion, tokens: int) -> str:
        others = self._open - {portion}
        prompt_tokens = self._prompt_tokens + portion.prompt_tokens + sum(other.prompt_tokens for other in others)
        total = self._tokens + tokens + sum(other.tokens for other in others)
        return await self.whole.raise_to(total, prompt_tokens=prompt_tokens)


class Portion(Charge):
    """One generation's, of its task's charge."""

    def __init__(self, task: TaskCharge, meter: Meter, principal: Principal, *, request_id: str, model: str) -> None:
        super().__init__(meter.books, principal, request_id=request_id, route=ROUTE, model=model)
        self._task = task

    async def open(self, prompt_tokens: int, completion_tokens: int = 0) -> None:
        self.prompt_tokens, self.tokens = prompt_tokens, prompt_tokens + completion_tokens
        await self._task.begin(self)
        self.is_reserved = True

    async def raise_to(self, tokens: int, *, prompt_tokens: int | None = None) -> str:
        reason = await self._task.raise_to(self, tokens)
        if not reason:
            self.tokens = max(self.tokens, tokens)
        return reason

    async def close(self, usage: Usage) -> None:
        self._task.end(self, usage)


class InnerRequest(MeteredRequest):
    """A generation of a task: among the open requests only as its task."""

    async def reserve(self, prompt_tokens: int, completion_tokens: int = 0) -> None:
        await self.charge.open(prompt_tokens, completion_tokens)


class MeteredTask:
    """One delivery of a task, as one request among the others. Changed by the event loop only.

    Args:
        on_abort: somebody who may has ended it; told who.

    Attributes:
        id: of its usage row.
    """

    def __init__(self, meter: Meter, principal: Principal, task: Task, *, model: str, on_abort: Callable[[str], None]) -> None:
        self._meter, self._principal, self._task, self._model = meter, principal, task, model
        self._on_abort = on_abort
        self._charge = TaskCharge(self._new_charge)
        self._running: set[InnerRequest] = set()
        self._ended: list[Usage] = []
        self._speeds: list[Speeds] = []
        self._started_s = time.monotonic()
        self._final: Usage | None = None

    def _new_charge(self) -> Charge:
        self.id = new_id(f"{self._task.id}-{self._task.delivery}-")
        return Charge(self._meter.books, self._principal, request_id=self.id, route=ROUTE, model=self._model)

    async def begin(self, engine: Engine, prompt: Prompt) -> InnerRequest:
        """Have a prompt admitted, paid for and queued; `end` is owed for what this returns.

        Raises:
            AtlasError: as `TaskCharge.begin`, `MeteredRequest.enter`.
        """
        portion = Portion(self._charge, self._meter, self._principal, request_id=self.id, model=self._model)
        inner = InnerRequest(
            self._meter,
            self._principal,
            request_id=self.id,
            route=ROUTE,
            model=self._model,
            is_streamed=True,
            priority=self._task.priority,
            charge=portion,
        )
        self._running.add(inner)
        try:
            await inner.enter(engine, [prompt])
        except BaseException:
            await self.end(inner, "failed")
            raise
        self._meter.traffic.begin(self)
        return inner

    async def end(self, inner: InnerRequest, state: RequestState) -> None:
        """A generation is over, however; what runs of it is stopped. Idempotent."""
        await inner.settle(state, "")
        if inner in self._running:
            self._running.discard(inner)
            self._ended.append(inner.usage)
            self._speeds += [speeds_of(each, inner.usage.queue_s) for each in inner.generations if each.num_tokens]

    async def settle(self, state: RequestState, finish: str) -> None:
        """Stop what is generated, and commit what was used, once; later calls change nothing.

        Raises:
            LedgerUnavailable: it will be written later; nobody may be told now that all is well.
        """
        await self.stop()
        await self.settling(state, finish)

    async def stop(self) -> None:
        """End every generation."""
        for inner in tuple(self._running):
            inner.stop()
            await self.end(inner, "aborted")

    def settling(self, state: RequestState, finish: str) -> Awaitable[None]:
        """As `settle` once all is stopped; what this returns is to be waited for, and the ledger has been asked before."""
        if self._final is not None:
            return _nothing()
        self._final = self._usage(state, finish)
        whole = self._charge.whole
        return self._settled(self._final, self._meter.books.write(self._final) if whole.is_reserved else _nothing())

    async def _settled(self, final: Usage, written: Awaitable[None]) -> None:
        try:
            await written
        finally:  # after the ledger, from which the limits are rebuilt when Redis has lost them
            self._charge.whole.release(final.prompt_tokens + final.completion_tokens, final.cost)
            self._meter.traffic.end(self, self._speeds)

    # -- as one of the open requests --

    @property
    def completion_tokens(self) -> int:
        return self._usage("running", "").completion_tokens

    def activity(self) -> Activity:
        is_waiting = bool(self._running) and all(inner.is_queued for inner in self._running)
        return Activity(
            usage=self._final or self._usage("queued" if is_waiting else "running", ""),
            username=self._principal.username,
            key_name=self._principal.name,
            priority=self._task.priority,
        )

    def abort(self, actor: str) -> None:
        self._on_abort(actor)

    def _usage(self, state: RequestState, finish: str) -> Usage:
        parts = [*self._ended, *(inner.usage for inner in self._running)]
        prompt_tokens = sum(part.prompt_tokens for part in parts)
        completion_tokens = sum(part.completion_tokens for part in parts)
        return Usage(
            request_id=self.id,
            at=self._charge.whole.at,
            owner=self._principal.owner,
            key_id=self._principal.key_id,
            route=ROUTE,
            model=self._model,
            state=state,
            prompt_tokens=prompt_tokens,
            cached_tokens=sum(part.cached_tokens for part in parts),
            completion_tokens=completion_tokens,
            cost=self._charge.whole.cost(prompt_tokens, completion_tokens),
            finish=finish,
            is_estimated=any(part.is_estimated for part in parts),
            queue_s=sum(part.queue_s for part in parts),
            ttft_s=next((part.ttft_s for part in parts if part.ttft_s is not None), None),
            wall_s=time.monotonic() - self._started_s,
        )


async def _nothing() -> None:
    pass


def _refusal(reason: str) -> AtlasError:
    """The limit of that name, as an error."""
    if reason.endswith(("_per_day", "_per_month")):
        return BudgetExhausted(f"the budget {reason} of the task's owner is used up")
    if reason.endswith("_per_minute"):
        return RateLimited(f"the limit {reason} of the task's owner is used up", retry_after_s=WINDOW_PATIENCE_S)
    return LimitsUnavailable(f"nothing can be reserved now: {reason}", retry_after_s=1.0)
