"""What limits and the ledger hold for one request: opened before it runs, raised while it runs, closed with what it used."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import msgspec
import structlog

from atlas.errors import AtlasError, BudgetExhausted, LedgerUnavailable, LimitsUnavailable, RateLimited, Unavailable
from atlas.gateway.arrivals import Arrivals
from atlas.gateway.limit_headers import RawHeader, limit_headers
from atlas.gateway.tariff import Tariff
from atlas.store import Ask, Live, Reservation, Store
from atlas.types import Principal, RequestState, Usage

log = structlog.get_logger("atlas.gateway")

EXTEND_PATIENCE_S = 5.0  # how long an extension is tried while Redis or the ledger is away; a private Redis is back in about one
EXTEND_RETRY_S = 0.25
WINDOW_S = 60.0  # of the limits per minute
RETRY_INTERVAL_S = 1.0  # between attempts to write what the ledger would not take


class Books:
    """The ledger's usage part and the live limits, as all requests of an application share them. Lives in the event loop.

    Attributes:
        live: None where nothing is limited.
        num_written: usage rows committed, by state.
        num_refused: refusals for a budget, by stage: admission or extension.
        is_limits_up: whether Redis answered when it was last asked.
        late: ended requests whose usage the ledger has not taken yet, by id. They are tried again until it does; if the process
            ends first, their reservations become `interrupted`.
    """

    def __init__(self, store: Store, live: Live | None, tariff: Tariff) -> None:
        self._usage = store.usage
        self.live = live
        self.tariff = tariff
        self.num_written: Counter[str] = Counter()
        self.num_refused: Counter[str] = Counter()
        self.is_limits_up = True
        self.late: dict[str, Usage] = {}
        self._arrivals = Arrivals()
        self._num_writing = 0
        self._written = asyncio.Event()
        self._retrying: asyncio.Task[None] | None = None

    def reserve(self, reservation: Reservation) -> asyncio.Future[None]:
        """As the ledger's; whoever waits may be cancelled, the ledger goes on."""
        return self._arrivals.expect(self._usage.reserve(reservation))

    def extend(self, request_id: str, *, tokens: int, cost: int, model: str) -> asyncio.Future[None]:
        return self._arrivals.expect(self._usage.extend(request_id, tokens=tokens, cost=cost, model=model))

    def write(self, usage: Usage) -> asyncio.Future[None]:
        """Commit a usage row, now or later, whatever becomes of whoever waits for it."""
        self._num_writing += 1
        return self._arrivals.expect(self._usage.settle(usage), lambda error: self._wrote(error, usage))

    async def close(self) -> None:
        """Wait until every ended request is in the ledger, or cannot be."""
        while self._num_writing:
            self._written.clear()
            await self._written.wait()
        if self._retrying is not None:
            self._retrying.cancel()
            await self._write_late()
        for request_id in self.late:
            log.error("usage.left_open", usage_id=request_id)  # its reservation becomes `interrupted` at the next start

    def note(self, error: AtlasError, stage: str) -> None:
        """Live has refused."""
        self.is_limits_up = not isinstance(error, LimitsUnavailable)
        if isinstance(error, BudgetExhausted):
            self.num_refused[stage] += 1

    def _wrote(self, error: BaseException | None, usage: Usage) -> None:
        self._num_writing -= 1
        self._written.set()
        if error is None:
            self.num_written[usage.state] += 1
        elif isinstance(error, LedgerUnavailable):
            self.late[usage.request_id] = as_failed(usage, error)
            if self._retrying is None or self._retrying.done():
                self._retrying = asyncio.create_task(self._retry())
        else:
            log.error("usage.unwritable", usage_id=usage.request_id, exc_info=error)

    async def _retry(self) -> None:
        while self.late:
            await asyncio.sleep(RETRY_INTERVAL_S)
            await self._write_late()

    async def _write_late(self) -> None:
        for request_id, usage in tuple(self.late.items()):
            try:
                await self._arrivals.expect(self._usage.settle(usage))
            except LedgerUnavailable:
                return
            del self.late[request_id]
            self.num_written[usage.state] += 1


class Charge:
    """One request's. Changed by the event loop only.

    Attributes:
        model: whose prices hold. Where another one is to answer, the reservation has to be raised to what that one may cost.
        at: Unix seconds when it was admitted, by the clock that budgets are counted with.
        prompt_tokens: reserved for the prompt.
        tokens: reserved altogether.
        headers: what is left of the limits.
        is_reserved: there is, or may be, a reservation in the ledger.
    """

    def __init__(self, books: Books, principal: Principal, *, request_id: str, route: str, model: str) -> None:
        self._books = books
        self._principal = principal
        self._id, self._route, self.model = request_id, route, model
        self._reserved_for = model
        self._ask: Ask | None = None
        self.at = time.time()
        self.prompt_tokens = self.tokens = 0
        self._cost = 0  # reserved altogether
        self.headers: list[RawHeader] = []
        self.is_reserved = False

    def cost(self, prompt_tokens: int, completion_tokens: int) -> int:
        return self._books.tariff.cost(self.model, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    async def open(self, prompt_tokens: int, completion_tokens: int = 0) -> None:
        """Charge limits and budgets, then make the reservation durable.

        Raises:
            RateLimited, BudgetExhausted: with the exact time to come back.
            BadRequest: no limit will ever hold so much.
            LimitsUnavailable, LedgerUnavailable: nothing that has to be accounted for may begin.
        """
        self.prompt_tokens, self.tokens = prompt_tokens, prompt_tokens + completion_tokens
        cost = self._cost = self.cost(prompt_tokens, completion_tokens)
        await self._admit(cost)
        self.is_reserved = True  # before it is known: if we are cancelled meanwhile, it may have been written
        self._reserved_for = self.model
        try:
            await self._books.reserve(self._reservation(cost))
        except AtlasError:
            self.is_reserved = False
            raise

    async def _admit(self, cost: int) -> None:
        who = self._principal
        if self._books.live is None:
            return
        ask = Ask(
            request_id=self._id,
            owner=who.owner,
            key_id=who.key_id,
            user_limits=who.user_limits,
            key_limits=who.key_limits,
            tokens=self.tokens,
            cost=cost,
        )
        try:
            grant = await self._books.live.admit(ask)
        except AtlasError as error:
            self._books.note(error, "admission")
            raise
        self._books.is_limits_up = True
        self._ask, self.at = ask, grant.at
        self.headers = limit_headers(grant.limits)

    def _reservation(self, cost: int) -> Reservation:
        return Reservation(
            request_id=self._id,
            at=self.at,
            owner=self._principal.owner,
            key_id=self._principal.key_id,
            route=self._route,
            model=self.model,
            tokens=self.tokens,
            prompt_tokens=self.prompt_tokens,
            cost=cost,
        )

    async def raise_to(self, tokens: int, *, prompt_tokens: int | None = None) -> str:
        """Reserve so many tokens altogether; returns the name of the limit that stands against it, empty if none does.

        Args:
            tokens: less than what is reserved is reserved already.
            prompt_tokens: how many of them are of prompts, where there is more than one.
        """
        of_prompts = self.prompt_tokens if prompt_tokens is None else prompt_tokens
        tokens = max(tokens, self.tokens)
        cost = max(self._cost, self.cost(of_prompts, tokens - of_prompts))
        give_up_s = time.monotonic() + EXTEND_PATIENCE_S
        while (tokens, cost, self.model) != (self.tokens, self._cost, self._reserved_for):
            try:
                if reason := await self._try_raise_to(tokens, cost):
                    return reason
                break
            except Unavailable as error:
                if time.monotonic() > give_up_s:
                    return error.code
            await asyncio.sleep(EXTEND_RETRY_S)
        self.prompt_tokens = of_prompts
        return ""

    async def _try_raise_to(self, tokens: int, cost: int) -> str:
        live = self._books.live
        if live is not None and self._ask is not None and not await live.extend(self._ask, tokens=tokens, cost=cost):
            return await self._refused_by(live, tokens, cost)
        await self._books.extend(self._id, tokens=tokens, cost=cost, model=self.model)
        self.tokens, self._cost, self._reserved_for = tokens, cost, self.model
        return ""

    async def _refused_by(self, live: Live, tokens: int, cost: int) -> str:
        """The limit that has no room for this: a budget, else the window of tokens."""
        who = self._principal
        more = {"tokens": tokens - self.tokens, "cost": cost - self._cost}
        for budget in (await live.remaining(who.owner, who.key_id, who.user_limits, who.key_limits)).budgets:
            if budget.remaining < more[budget.kind]:
                self._books.num_refused["extension"] += 1
                return f"{budget.kind}_per_{budget.period}"
        return "tokens_per_minute"

    async def close(self, usage: Usage) -> None:
        """Commit what was used, and free what was not.

        Raises:
            LedgerUnavailable: it cannot be written now; it will be, as failed. The client must not be told that all is well.
        """
        try:
            if self.is_reserved:
                await self._books.write(usage)
        finally:  # after the ledger, from which the limits are rebuilt when Redis has lost them
            self.release(usage.prompt_tokens + usage.completion_tokens, usage.cost)

    def release(self, tokens: int = 0, cost: int = 0) -> None:
        """Have the limits hold what was used, and no more."""
        if self._ask is not None and self._books.live is not None:
            self._books.live.settle_soon(self._ask, tokens=tokens, cost=cost)


def refused_by(limit: str, what: str) -> AtlasError:
    """A limit of that name, or a trouble, as the error of what it stands against."""
    if limit.endswith(("_per_day", "_per_month")):
        return BudgetExhausted(f"the budget {limit} is used up for {what!r}")
    if limit.endswith("_per_minute"):
        return RateLimited(f"the limit {limit} is used up for {what!r}", retry_after_s=WINDOW_S)
    return LimitsUnavailable(f"nothing can be reserved for {what!r} now: {limit}", retry_after_s=1.0)


def as_failed(usage: Usage, error: AtlasError) -> Usage:
    """The same tokens, for a client that has been told of this error instead of a good end."""
    if usage.state != "completed":
        return usage
    state: RequestState = "failed"
    return msgspec.structs.replace(usage, state=state, finish=error.code)


def bound_of(allowance: int, max_tokens: int | None) -> int | None:
    """The allowance as an engine is told; none where all is paid that was asked for: no candidate waits after its last token."""
    return None if max_tokens is not None and allowance >= max_tokens else allowance
