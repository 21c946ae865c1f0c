"""Limits and budgets, counted in Redis: nothing is let in that has not been counted there, and nothing else counts.

`admit` charges a request before it starts, `extend` raises what it may use, `settle` corrects the charge to what it used. Each is
one script (admit.lua, extend.lua, settle.lua), so that two requests never see the same last token of a budget; requests that come
together share a run of it (live_batch.py). Without Redis there is no answer but LimitsUnavailable: no memory substitute.

What is exact: requests of a sliding window; running requests; budgets per UTC day and month, which are counted for everybody,
limited or not, so that a limit set later finds what was used before. Tokens of a window are counted in 60 buckets plus the
running one, so a window never admits more than its limit, and may admit up to a bucket's worth less. A window or concurrency
limit that is set later counts from then on. One server per Redis database and namespace.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import structlog

from atlas.errors import BadRequest, Conflict
from atlas.store.live_batch import Batches
from atlas.store.live_rebuild import EPOCH, Rebuild
from atlas.store.live_refusal import refusal
from atlas.store.live_trust import Script, TrustedRedis
from atlas.store.live_values import (
    Ask,
    Budget,
    Caller,
    Counts,
    Grant,
    OpenReservation,
    Remaining,
    Silent,
    Spent,
    Window,
)
from atlas.types import Limits, Usage

log = structlog.get_logger("atlas.live")

TIMEOUT_S = 1.0
COMPLAINT = "limits cannot be counted now, and nothing is let in uncounted; try again in a moment"
MAX_OWED = 10_000  # corrections kept while Redis is away; beyond it everything is rebuilt instead


class Live:
    """The counters of one server, for one event loop. Connects when first used.

    Args:
        source: reads the ledger, in a thread; without it `rebuild` has to be called before anything is admitted.
        namespace: of letters and digits; begins the names of all keys.
        window_s: length of the windows that requests and tokens "per minute" are counted in.
    """

    def __init__(
        self,
        redis: Caller,
        *,
        source: Callable[[], Counts] | None = None,
        namespace: str = "atlas",
        window_s: float = 60.0,
    ) -> None:
        self._window_s = window_s
        prefix, window_us = f"{namespace}:live:", round(window_s * 1e6)
        constants: dict[str, str | int] = {"PREFIX": prefix, "WINDOW_US": window_us}
        self._admit = Script("admit", shared="common", constants=constants)
        self._extend = Script("extend", shared="common", constants=constants)
        self._settle = Script("settle", shared="common", constants=constants, flags=" flags=allow-oom")
        self._builder = Rebuild(redis, prefix=prefix, window_us=window_us)
        scripts = (self._settle, self._extend, self._admit)
        self._redis = TrustedRedis(
            redis, builder=self._builder, scripts=scripts, source=source, on_look=self._pay_all, complaint=COMPLAINT
        )
        self._batches = Batches(self._redis, scripts)
        self._owed: dict[str, tuple[str | int, ...]] = {}  # arguments of settle.lua by request, until it has answered

    @property
    def trouble(self) -> str:
        """Why Redis cannot be used, for the operator; empty while it can."""
        return self._redis.trouble

    async def admit(self, ask: Ask) -> Grant:
        """Let a request in and charge it, or charge nothing.

        An ask of nobody (no owner, no key) is not counted, but Redis has to be there.

        Raises:
            RateLimited: a limit of the key or user is reached; `retry_after_s` is when that much has left the window.
            BudgetExhausted: `retry_after_s` is when the UTC day or month ends.
            BadRequest: no window will ever hold so many tokens.
            Conflict: a request of this id is running.
            LimitsUnavailable: Redis does not answer, or cannot count.
        """
        _check_possible(ask)
        if not ask.owner and not ask.key_id:
            await self._redis.until_ready()
            return Grant(request_id=ask.request_id, at=time.time())
        reply = await self._let_in(ask)
        if reply == b"duplicate":
            raise Conflict(f"a request with the id {ask.request_id} is running; send each request under an id of its own")
        outcome, at_us, *rest = reply.decode().split()
        if outcome == "no":
            raise refusal(rest, at_s=int(at_us) / 1e6)
        return Grant(request_id=ask.request_id, at=int(at_us) / 1e6, limits=self._windows(*map(int, rest)))

    async def extend(self, ask: Ask, *, tokens: int, cost: int) -> bool:
        """Raise what an admitted request may use to these totals.

        Returns:
            False, and nothing has changed: a token window or a budget has no room, or no such request is running.

        Raises:
            LimitsUnavailable: Redis does not answer; `settle` corrects whatever this has charged.
        """
        if not ask.owner and not ask.key_id:
            return True
        try:
            reply = await self._batches.run(self._extend, *_who(ask), tokens, cost, *_limits(ask))
        except Silent:
            raise self._redis.unavailable() from None
        return reply == b"ok"

    async def settle(self, ask: Ask, *, tokens: int, cost: int) -> None:
        """Correct the charge to what was used, and count the request as running no more.

        To be called when the ledger has it. Never fails and may be repeated: while Redis is away the correction is kept.
        """
        if (paying := self.settle_soon(ask, tokens=tokens, cost=cost)) is not None:
            await asyncio.wait((paying,))

    def settle_soon(self, ask: Ask, *, tokens: int, cost: int) -> asyncio.Future[bytes] | None:
        """As `settle`, without waiting: whatever is admitted from now on is admitted after it."""
        if not ask.owner and not ask.key_id:
            return None
        self._owe(ask, "settle", tokens=tokens, cost=cost)
        return self._pay(ask.request_id)

    async def remaining(self, owner: str, key_id: str, user_limits: Limits, key_limits: Limits) -> Remaining:
        """Budgets of a principal and what is used of them.

        Raises:
            LimitsUnavailable: Redis does not answer.
        """
        seconds, _ = await self._redis.call("TIME")
        found: list[Budget] = []
        for whose, name, limits in (("user", owner, user_limits), ("key", key_id, key_limits)):
            if name:
                found += await self._budgets(whose, name, limits, int(seconds))
        return Remaining(budgets=tuple(found))

    async def rebuild(
        self, spent: Iterable[Spent], reservations: Iterable[OpenReservation], recent: Iterable[Usage] = ()
    ) -> None:
        """Write budgets and running requests anew; to be called when the server starts, or leave it to `source`.

        Raises:
            LimitsUnavailable: Redis does not answer, or is too old.
        """
        await self._redis.rebuild(Counts(spent, reservations, recent))

    async def ping(self) -> None:
        """See whether requests could be admitted.

        Raises:
            LimitsUnavailable: no; `trouble` says why.
        """
        await self._redis.call("PING")

    async def close(self) -> None:
        """Make the corrections that are still owed, if Redis answers, and disconnect."""
        await self._pay_all()
        await self._redis.close()

    async def _let_in(self, ask: Ask) -> bytes:
        try:
            return await self._batches.run(self._admit, *_who(ask), ask.tokens, ask.cost, *_limits(ask))
        except asyncio.CancelledError:
            self._owe(ask, "withdraw")  # it may be in by now, and nobody will run it
            raise
        except Silent:
            self._owe(ask, "withdraw")
            raise self._redis.unavailable() from None

    async def _budgets(self, whose: Any, name: str, limits: Limits, now_s: int) -> list[Budget]:
        day = datetime.fromtimestamp(now_s, UTC).date()
        number = (day - EPOCH).days
        key = self._builder.budget_key(f"{whose}:{name}", day)
        used = await self._redis.call("HMGET", key, f"t{number}", "t", f"c{number}", "c")
        asked: list[tuple[Any, Any, int | None]] = [
            ("tokens", "day", limits.tokens_per_day),
            ("tokens", "month", limits.tokens_per_month),
            ("cost", "day", limits.cost_per_day),
            ("cost", "month", limits.cost_per_month),
        ]
        return [
            Budget(kind=kind, period=period, whose=whose, limit=limit, used=int(amount or 0))
            for (kind, period, limit), amount in zip(asked, used, strict=True)
            if limit is not None
        ]

    def _windows(
        self, request_limit: int, requests_left: int, token_limit: int, tokens_left: int, reset_us: int
    ) -> tuple[Window, ...]:
        found = []
        if request_limit >= 0:
            found.append(Window(kind="requests", limit=request_limit, remaining=requests_left, reset_s=self._window_s))
        if token_limit >= 0:
            found.append(Window(kind="tokens", limit=token_limit, remaining=tokens_left, reset_s=reset_us / 1e6))
        return tuple(found)

    def _owe(self, ask: Ask, how: str, *, tokens: int = 0, cost: int = 0) -> None:
        if len(self._owed) >= MAX_OWED:
            log.warning("live.corrections_dropped", num_dropped=len(self._owed))
            self._owed.clear()
            self._redis.distrust()
        self._owed[ask.request_id] = (*_who(ask), tokens, cost, how)
        self._redis.start()

    async def _pay_all(self) -> None:
        if paying := [future for request_id in self._owed if (future := self._pay(request_id)) is not None]:
            await asyncio.wait(paying)

    def _pay(self, request_id: str) -> asyncio.Future[bytes] | None:
        """Make one correction, or leave it for later. Making it twice does nothing."""
        arguments = self._owed.get(request_id)
        if arguments is None or not self._redis.is_ready:
            return None
        paying = self._batches.run(self._settle, *arguments)
        paying.add_done_callback(lambda paid: self._paid(request_id, arguments, paid))
        return paying

    def _paid(self, request_id: str, arguments: tuple[str | int, ...], paid: asyncio.Future[bytes]) -> None:
        is_made = not paid.cancelled() and paid.exception() is None
        if is_made and self._owed.get(request_id) is arguments:
            del self._owed[request_id]


def open_live(url: str, *, source: Callable[[], Counts] | None = None, namespace: str = "atlas", window_s: float = 60.0) -> Live:
    """The counters in the Redis at `url`: redis://, rediss:// or unix://."""
    # Here and not above: redis-py takes 160 ms to import, and the command line and the parent of the server do not need it.
    from atlas.store.live_link import Link

    return Live(Link(url, timeout_s=TIMEOUT_S), source=source, namespace=namespace, window_s=window_s)


def _check_possible(ask: Ask) -> None:
    for whose, limits in (("user", ask.user_limits), ("key", ask.key_limits)):
        limit = limits.tokens_per_minute
        if limit is not None and ask.tokens > limit:
            raise BadRequest(
                f"this request needs {ask.tokens} tokens, and tokens_per_minute of this {whose} is {limit}; "
                "send a shorter prompt or ask for fewer candidates"
            )


def _who(ask: Ask) -> tuple[str, str, str]:
    return ask.request_id, ask.owner, ask.key_id


def _limits(ask: Ask) -> tuple[str, str]:
    return _limit_text(ask.user_limits), _limit_text(ask.key_limits)


@lru_cache(maxsize=4096)
def _limit_text(limits: Limits) -> str:
    """As common.lua reads it."""
    values = (
        limits.requests_per_minute,
        limits.tokens_per_minute,
        limits.concurrency,
        limits.tokens_per_day,
        limits.tokens_per_month,
        limits.cost_per_day,
        limits.cost_per_month,
    )
    return ",".join("-" if value is None else str(value) for value in values)
