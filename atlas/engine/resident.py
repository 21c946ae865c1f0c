"""A model in this process that may fall asleep, is woken by the next request, and can be sent away when its answers are done.

Asleep it holds neither weights nor cells. What it is called and can do, its adapters and its counters outlast that, so that
nobody notices more than the time it takes to read the file again. Calls that need the model wait for it, and so wake it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar
from weakref import WeakSet

import msgspec
import structlog

from atlas.engine.face import Engine
from atlas.engine.group import Group
from atlas.errors import AtlasError, EngineUnavailable, OperatorError
from atlas.types import AdapterInfo, Capabilities, Embeddings, EngineStats, Prompt

log = structlog.get_logger("atlas.engine")

LOOK_EVERY_S = 0.05  # whether the last answer is done, while somebody waits for that
GAUGES = frozenset({"num_running", "num_waiting", "cells_used", "cells_live", "cells_total"})
COUNTERS = tuple(name for name in EngineStats.__struct_fields__ if name not in GAUGES)

State = Literal["ready", "asleep", "waking", "leaving"]
Make = Callable[[], Awaitable[Engine]]
T = TypeVar("T")


class Resident:
    """Satisfies `Engine`. Lives in the event loop.

    Args:
        engine: the model, awake.
        make: loads it again.
        sleep_after_s: how long nobody may want anything of it before it falls asleep; 0 is for ever.
    """

    def __init__(self, engine: Engine, make: Make, *, sleep_after_s: float = 0.0) -> None:
        self._inner: Engine | None = engine
        self._make = make
        self._sleep_after_s = sleep_after_s
        self._capabilities = engine.capabilities
        self._adapters = engine.adapters()
        self._before = EngineStats()  # what has been counted until it last fell asleep
        self._num_calls = 0
        self._groups: WeakSet[Group] = WeakSet()  # the engine holds those that are not done
        self._used_s = asyncio.get_running_loop().time()
        self._is_leaving = self._is_closed = False
        self._waking: asyncio.Task[Engine] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._dozing = asyncio.create_task(self._doze()) if sleep_after_s else None

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities if self._inner is None else self._inner.capabilities

    @property
    def is_asleep(self) -> bool:
        """Whether the next request has to wait for it."""
        return self._inner is None

    @property
    def state(self) -> State:
        if self._is_leaving:
            return "leaving"
        if self._inner is not None:
            return "ready"
        return "asleep" if self._waking is None else "waking"

    @property
    def is_idle(self) -> bool:
        """Nobody wants anything of it."""
        return not self._num_calls and all(group.is_done for group in self._groups)

    def stats(self) -> EngineStats:
        if self._inner is None:
            return self._before
        return _sum(self._before, self._inner.stats())

    async def submit(self, prompt: Prompt) -> Group:
        group = await self._use(lambda engine: engine.submit(prompt))
        self._groups.add(group)
        return group

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> Embeddings:
        return await self._use(lambda engine: engine.embed(inputs))

    async def count_tokens(self, prompt: Prompt) -> int:
        return await self._use(lambda engine: engine.count_tokens(prompt))

    async def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        return await self._use(lambda engine: engine.tokenize(text, special=special))

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        return await self._use(lambda engine: engine.pieces(tokens))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return await self._use(lambda engine: engine.detokenize(tokens))

    def adapters(self) -> tuple[AdapterInfo, ...]:
        return self._adapters if self._inner is None else self._inner.adapters()

    async def load_adapter(self, name: str, path: Path, *, scale: float = 1.0) -> AdapterInfo:
        return await self._use(lambda engine: engine.load_adapter(name, path, scale=scale))

    async def drop_adapter(self, name: str) -> None:
        await self._use(lambda engine: engine.drop_adapter(name))

    async def leave(self) -> None:
        """Refuse whatever comes from now on; when all answers are done, free it."""
        self._is_leaving = True
        while not self.is_idle:  # noqa: ASYNC110  an engine does not tell when its last answer is done
            await asyncio.sleep(LOOK_EVERY_S)
        await self.close()

    async def close(self) -> None:
        self._is_closed = True
        for task in (self._dozing, self._waking):
            if task is not None:
                task.cancel()
        if self._inner is not None:
            await self._inner.close()
        if self._closing is not None:
            await self._closing

    async def _use(self, act: Callable[[Engine], Awaitable[T]]) -> T:
        if self._is_leaving or self._is_closed:
            what = "is being unloaded" if self._is_leaving else "is shut down"
            raise EngineUnavailable(f"model '{self._capabilities.model}' {what}", retry_after_s=5)
        self._num_calls += 1
        try:
            return await act(self._inner or await self._woken())
        finally:
            self._num_calls -= 1
            self._used_s = asyncio.get_running_loop().time()

    # -- sleeping --

    async def _doze(self) -> None:
        """Look now and then whether it has been idle for long enough."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(self._sleep_after_s / 8, LOOK_EVERY_S))
            if not self.is_idle:
                self._used_s = loop.time()
            elif self._inner is not None and not self._is_leaving and loop.time() - self._used_s >= self._sleep_after_s:
                self._fall_asleep(self._inner)

    def _fall_asleep(self, engine: Engine) -> None:
        """From here on calls wait for another engine; this one is freed before that is made."""
        log.info("engine.fell_asleep", model=self._capabilities.model)
        self._capabilities, self._adapters, self._before = engine.capabilities, engine.adapters(), self.stats()
        self._before = msgspec.structs.replace(self._before, cells_used=0, cells_live=0, cells_total=0)
        self._inner = None
        self._closing = asyncio.create_task(engine.close())

    async def _woken(self) -> Engine:
        """All who wait for it wait for the same; whoever gives up ends nothing."""
        if self._waking is None:
            self._waking = asyncio.create_task(self._wake())
            self._waking.add_done_callback(self._forget_waking)
        return await asyncio.shield(self._waking)

    def _forget_waking(self, waking: asyncio.Task[Engine]) -> None:
        self._waking = None
        if not waking.cancelled():
            waking.exception()  # those who waited have it, if any are left

    async def _wake(self) -> Engine:
        if self._closing is not None:
            await self._closing
        try:
            engine = await self._make()
        except OperatorError as error:
            message = f"model '{self._capabilities.model}' cannot be woken: {error.message}"
            raise EngineUnavailable(message, retry_after_s=5) from None
        await self._restore_adapters(engine)
        self._inner = engine
        log.info("engine.woke", model=self._capabilities.model)
        return engine

    async def _restore_adapters(self, engine: Engine) -> None:
        """Those there were, and no others: some may have been loaded or dropped since the settings were read."""
        before = {adapter.name: adapter for adapter in self._adapters}
        now = {adapter.name: adapter for adapter in engine.adapters()}
        for name in now.keys() - before.keys():
            await engine.drop_adapter(name)
        for name, adapter in before.items():
            if name in now and (now[name].path, now[name].scale) == (adapter.path, adapter.scale):
                continue
            with contextlib.suppress(AtlasError):  # its file may have gone meanwhile: who names it is told there is none
                await engine.load_adapter(name, Path(adapter.path), scale=adapter.scale)


def _sum(before: EngineStats, now: EngineStats) -> EngineStats:
    """Counters of both; of the rest, what is now."""
    if before.steps == 0 and before.prompt_tokens == 0:  # nearly always: it has never slept
        return now
    return msgspec.structs.replace(now, **{name: getattr(before, name) + getattr(now, name) for name in COUNTERS})
