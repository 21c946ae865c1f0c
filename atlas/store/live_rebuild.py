"""Makes the counters of Live again from the ledger, in a Redis that may hold none, old ones or some of them."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from atlas.store.live_values import Argument, Caller, Counts, OpenReservation
from atlas.types import Usage

BUCKETS = 60  # this and the two below as in common.lua
KEEP_REQUEST_S = 2 * 86_400
KEEP_BUDGET_S = 40 * 86_400
PAGE = 500  # commands on the way at a time (chosen)
EPOCH = date(1970, 1, 1)

Command = tuple[Argument, ...]


class Charge(NamedTuple):
    """What one request took from the windows of `names`, all of it when it was admitted."""

    request_id: str
    at_us: int
    names: tuple[str, ...]
    tokens: int


class Rebuild:
    """Writes the counters under `prefix`; nothing may be admitted meanwhile.

    Attributes:
        mark: key that holds the run id of the Redis that was rebuilt; without it the scripts refuse.
    """

    def __init__(self, redis: Caller, *, prefix: str, window_us: int) -> None:
        self._redis = redis
        self._prefix = prefix
        self.mark = f"{prefix}ready"
        self._bucket_us = window_us / BUCKETS
        self._keep_ms = round(window_us / 1000 * 1.1)  # as in common.lua

    async def run(self, counts: Counts, *, run_id: bytes) -> None:
        """Write everything, the mark last: a rebuild that breaks off is no rebuild.

        Budgets and running requests are the ledger's. The windows are kept, since Redis knows better when a request was charged;
        added are requests that it does not know: an append-only file may end two seconds before a kill, or be gone.
        """
        running, recent = list(counts.reservations), list(counts.recent)
        known = await self._known([row.request_id for row in running] + [row.request_id for row in recent])
        await self._redis.call("DEL", self.mark)
        await self._send([("UNLINK", key) async for key in scan(self._redis, f"{self._prefix}[bcr]:*")])
        await self._send(self._budgets(counts, running))
        await self._send([command for request in running for command in self._register(request, known.get(request.request_id))])
        await self._send([("SET", self._request_key(row.request_id), "ended", "PX", self._keep_ms) for row in recent])
        unknown = [charge for charge in _charges(running, recent) if charge.request_id not in known]
        await self._send(self._windows(unknown, await self._now_us()))
        await self._redis.call("SET", self.mark, run_id)

    def _budgets(self, counts: Counts, running: Sequence[OpenReservation]) -> list[Command]:
        totals: dict[str, Counter[str]] = defaultdict(Counter)
        for row in counts.spent:
            self._spend(totals, _names(row.owner, row.key_id), date.fromisoformat(row.day), row.tokens, row.cost)
        for request in running:
            self._spend(totals, _names(request.owner, request.key_id), _utc_day(request.at), request.tokens, request.cost)
        return [
            command
            for key, fields in totals.items()
            for command in (("HSET", key, *_flat(fields)), ("EXPIRE", key, KEEP_BUDGET_S))
        ]

    def _spend(self, totals: dict[str, Counter[str]], names: Sequence[str], day: date, tokens: int, cost: int) -> None:
        number = (day - EPOCH).days
        for name in names:
            fields = totals[self.budget_key(name, day)]
            fields.update({"t": tokens, f"t{number}": tokens, "c": cost, f"c{number}": cost})

    def budget_key(self, name: str, day: date) -> str:
        """Where the budgets of the month of `day` are counted."""
        return f"{self._prefix}b:{name}:{day.year * 12 + day.month - 1}"

    def _request_key(self, request_id: str) -> str:
        return f"{self._prefix}r:{request_id}"

    async def _known(self, request_ids: Sequence[str]) -> dict[str, bytes]:
        """What r:ID says, for each id that Redis has."""
        texts = await self._send([("GET", self._request_key(request_id)) for request_id in request_ids])
        return {request_id: text for request_id, text in zip(request_ids, texts, strict=True) if text is not None}

    def _register(self, request: OpenReservation, known: bytes | None) -> Iterator[Command]:
        names = _names(request.owner, request.key_id)
        if known is None or known == b"ended":
            windows = "".join(name[0] for name in names)
            charged = f"{windows or '-'} {int(request.at * 1e6 // self._bucket_us)}={request.tokens}"
        else:
            charged = known.decode().split(" ", 3)[3]
        record = f"{request.tokens} {request.cost} {(_utc_day(request.at) - EPOCH).days} {charged}"
        yield ("SET", self._request_key(request.request_id), record, "EX", KEEP_REQUEST_S)
        for name in names:
            yield ("SADD", f"{self._prefix}c:{name}", request.request_id)
            yield ("EXPIRE", f"{self._prefix}c:{name}", KEEP_REQUEST_S)

    def _windows(self, charges: Sequence[Charge], now_us: int) -> list[Command]:
        commands: list[Command] = []
        now_bucket = int(now_us // self._bucket_us)
        for charge in charges:
            bucket = int(charge.at_us // self._bucket_us)
            if bucket >= now_bucket - BUCKETS:
                commands += (command for name in charge.names for command in self._charge(charge, name, bucket))
        return commands

    def _charge(self, charge: Charge, name: str, bucket: int) -> Iterator[Command]:
        log, window = f"{self._prefix}q:{name}", f"{self._prefix}w:{name}"
        yield ("ZADD", log, "NX", charge.at_us, charge.request_id)
        yield ("PEXPIRE", log, self._keep_ms)
        yield ("HINCRBY", window, bucket, charge.tokens)
        yield ("HINCRBY", window, "sum", charge.tokens)
        yield ("HSETNX", window, "last", bucket)
        yield ("PEXPIRE", window, self._keep_ms)

    async def _now_us(self) -> int:
        seconds, micros = await self._redis.call("TIME")
        return int(seconds) * 1_000_000 + int(micros)

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        return await send(self._redis, commands)


async def send(redis: Caller, commands: Sequence[Command]) -> list[Any]:
    """The replies of many commands, a page of them on the way at a time."""
    replies: list[Any] = []
    for start in range(0, len(commands), PAGE):
        replies += await asyncio.gather(*(redis.call(*command) for command in commands[start : start + PAGE]))
    return replies


async def scan(redis: Caller, pattern: str) -> AsyncIterator[bytes]:
    """Keys that match. A stray SCAN reply may name a key twice, which UNLINK does not mind."""
    cursor: bytes | int = 0
    while True:
        cursor, keys = await redis.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        for key in keys:
            yield key
        if int(cursor) == 0:
            return


def _charges(running: Sequence[OpenReservation], recent: Sequence[Usage]) -> list[Charge]:
    ended = [
        Charge(row.request_id, round(row.at * 1e6), _names(row.owner, row.key_id), row.prompt_tokens + row.completion_tokens)
        for row in recent
    ]
    return ended + [Charge(row.request_id, round(row.at * 1e6), _names(row.owner, row.key_id), row.tokens) for row in running]


def _names(owner: str, key_id: str) -> tuple[str, ...]:
    return tuple(f"{kind}:{name}" for kind, name in (("user", owner), ("key", key_id)) if name)


def _utc_day(at_s: float) -> date:
    return datetime.fromtimestamp(at_s, UTC).date()


def _flat(fields: Mapping[Any, int]) -> list[Argument]:
    return [part for item in fields.items() for part in item]
