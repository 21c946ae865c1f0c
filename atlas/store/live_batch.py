"""Runs of scripts, gathered: what is asked for while others are under way goes out as one run of each script.

Starting a script and reading what it counts with costs Redis several times what one request more in it does. Corrections of ended
requests go out before admissions, so whoever has had an answer finds it settled when they ask for the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from atlas.store.live_trust import Script, TrustedRedis

_encoder = msgspec.msgpack.Encoder()

MAX_RUN = 200  # requests in one run: bounds how long Redis does nothing else (about 4 ms); chosen
GATHER_S = 0.002  # that requests gather before the next run, when there are many; chosen


class _Asked(NamedTuple):
    arguments: tuple[str | int, ...]
    reply: asyncio.Future[bytes]


class Batches:
    """Of one event loop.

    Args:
        scripts: in the order in which they go out; each takes the arguments of any number of requests, a list of lists in
            MessagePack, and replies with a line for each.
    """

    def __init__(self, redis: TrustedRedis[Any], scripts: Sequence[Script]) -> None:
        self._redis = redis
        self._waiting: dict[Script, list[_Asked]] = {script: [] for script in scripts}
        self._serving: asyncio.Task[Any] | None = None

    def run(self, script: Script, *arguments: str | int) -> asyncio.Future[bytes]:
        """The reply for one request. What the future raises is as `TrustedRedis.run` says."""
        asked = _Asked(arguments, asyncio.get_running_loop().create_future())
        self._waiting[script].append(asked)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return asked.reply

    async def _serve(self) -> None:
        while runs := [(script, asked) for script in self._waiting if (asked := self._take(script))]:
            await asyncio.gather(*(self._run(script, asked) for script, asked in runs))
            if sum(len(asked) for _, asked in runs) > 1:  # busy
                await asyncio.sleep(GATHER_S)
        self._serving = None

    def _take(self, script: Script) -> list[_Asked]:
        waiting = self._waiting[script]
        self._waiting[script] = waiting[MAX_RUN:]
        return waiting[:MAX_RUN]

    async def _run(self, script: Script, asked: Sequence[_Asked]) -> None:
        try:
            lines = (await self._redis.run(script, _encoder.encode([one.arguments for one in asked]))).split(b"\n")
        except Exception as error:  # whatever it is, it is for those who wait
            _fail(asked, error)
        else:
            for one, line in zip(asked, lines, strict=True):
                if not one.reply.done():  # its waiter was cancelled
                    one.reply.set_result(line)


def _fail(asked: Sequence[_Asked], error: Exception) -> None:
    for one in asked:
        if not one.reply.done():
            one.reply.set_exception(error)
            one.reply.exception()  # whoever waits gets it; if nobody does, that is no fault
