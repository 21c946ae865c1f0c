"""LoRA adapters: files that change what a model says, loaded and dropped while it answers.

llama.cpp keeps the adapters of a model in a list that it walks whenever it plans a graph, so they are loaded and freed on the
engine thread, between two steps (1 ms for nano; for a large one, what reading the file takes). What is computed with an adapter
is good for that adapter at that scale alone: each loading has a key of its own, by which the caches are kept apart.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from atlas.engine.adapter_file import check_adapter
from atlas.engine.binding import c
from atlas.engine.runner import Model
from atlas.errors import BadRequest, EngineUnavailable, ModelFileError, ModelNotFound
from atlas.types import AdapterInfo

log = structlog.get_logger("atlas.engine")

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
SCALE_MAX = 100.0  # chosen: beyond it is a mistake; 1 is what the adapter was trained for

CLOSE_S = 1.0

T = TypeVar("T")


@dataclass(eq=False)
class Adapter:
    """One loading of a file, at one scale.

    Attributes:
        key: never 0, never used again.
        handle: llama.cpp's; freed when the adapter has been dropped and no job has it any more.
        num_users: prompts that have been taken with it and not been answered. Read and written in the event loop's thread.
        unused: set when the last of them has ended.
    """

    key: int
    name: str
    path: Path
    scale: float
    handle: Any
    num_users: int = 0
    unused: asyncio.Event | None = None

    def pin(self) -> None:
        self.num_users += 1

    def unpin(self) -> None:
        self.num_users -= 1
        if self.num_users == 0 and self.unused is not None:
            self.unused.set()


class EngineThread(Protocol):
    """What is needed of the thread that owns the context."""

    async def between_steps(self, work: Callable[[], T]) -> T: ...

    def forget_adapter(self, key: int) -> None: ...


class Adapters:
    """The adapters of one model by name. Used in the event loop's thread."""

    def __init__(self, model: Model, model_id: str, thread: EngineThread) -> None:
        self._model, self._model_id, self._thread = model, model_id, thread
        self._keys = count(1)
        self._by_name: dict[str, Adapter] = {}
        self._changing = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    def infos(self) -> tuple[AdapterInfo, ...]:
        """Those a prompt may name, in the order of their names."""
        found = sorted(self._by_name.items())
        return tuple(
            AdapterInfo(name=name, path=str(adapter.path), scale=adapter.scale, num_users=adapter.num_users)
            for name, adapter in found
        )

    def find(self, name: str) -> Adapter:
        """Raises ModelNotFound if none has this name now."""
        adapter = self._by_name.get(name)
        if adapter is None:
            known = ", ".join(f"'{other}'" for other in sorted(self._by_name)) or "none"
            raise ModelNotFound(f"model '{self._model_id}' has no adapter '{name[:100]}'; loaded: {known}", param="model")
        return adapter

    async def load(self, name: str, path: Path, *, scale: float = 1.0) -> AdapterInfo:
        """Read a file and give it a name; one that had the name leaves, as by `drop`, without being waited for.

        Raises:
            BadRequest: the name or the scale cannot be one.
            ModelFileError: the file is missing, damaged, or does not fit the model.
        """
        _check(name, scale)
        async with self._changing:
            await asyncio.to_thread(check_adapter, path, self._model.path)
            handle = await self._thread.between_steps(lambda: _load(self._model, path))
            before = self._by_name.get(name)
            self._by_name[name] = Adapter(next(self._keys), name, path, scale, handle)
        if before is not None:
            self._let_go(before)
        log.info("adapter.loaded", adapter=name, path=str(path), scale=scale)
        return next(info for info in self.infos() if info.name == name)

    async def drop(self, name: str) -> None:
        """No prompt can name it from now on; returns when those that did are answered, and its memory is free.

        Raises:
            ModelNotFound: none has this name.
        """
        adapter = self.find(name)
        del self._by_name[name]
        await asyncio.shield(self._let_go(adapter))

    async def close(self) -> None:
        """The engine thread has ended, and failed what had adapters; the model frees what is left."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=CLOSE_S)
        for task in self._leaving:
            task.cancel()

    def _let_go(self, adapter: Adapter) -> asyncio.Task[None]:
        task = asyncio.create_task(self._free(adapter))
        self._leaving.add(task)
        task.add_done_callback(self._left)
        return task

    def _left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, EngineUnavailable):
            log.error("adapter.not_freed", exc_info=error)

    async def _free(self, adapter: Adapter) -> None:
        if adapter.num_users:
            adapter.unused = asyncio.Event()
            await adapter.unused.wait()
        await self._thread.between_steps(lambda: self._leave(adapter))
        log.info("adapter.dropped", adapter=adapter.name)

    # -- on the engine thread --

    def _leave(self, adapter: Adapter) -> None:
        self._thread.forget_adapter(adapter.key)
        with self._model.adapters_lock:
            c.llama_adapter_lora_free(adapter.handle)
        adapter.handle = None


def _load(model: Model, path: Path) -> Any:
    with model.adapters_lock:
        handle = c.llama_adapter_lora_init(model.handle, str(path).encode())
    if not handle:  # an object that stands for NULL, never None
        raise ModelFileError(
            f"adapter {path} cannot be loaded into {model.path.name}: its weights are cut short, or memory ran out"
        )
    return handle


def _check(name: str, scale: float) -> None:
    if not NAME.fullmatch(name):
        raise BadRequest(f"'{name[:100]}' cannot name an adapter; use a-z, 0-9, '.', '_' and '-'", param="name")
    if not math.isfinite(scale) or not 0 < abs(scale) <= SCALE_MAX:
        raise BadRequest(
            f"scale is {scale}; it must not be 0 (that is the model itself), nor beyond {SCALE_MAX:g}", param="scale"
        )
