"""The models of this process: the one it began with, and those that were loaded beside it or instead of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from atlas.engine import memory
from atlas.engine.face import Engine
from atlas.engine.registry import is_path
from atlas.engine.resident import Make, Resident
from atlas.errors import AtlasError, BadRequest, Conflict, ModelNotFound, OperatorError
from atlas.launch import ModelChoice
from atlas.settings import EngineSettings

log = structlog.get_logger("atlas.engine")


class LoadedModels:
    """Lives in the event loop. One model is loaded at a time; the first that is there is the default.

    Args:
        find: the file that a name means; raises ModelFileError.
        make: loads a file.
        free_bytes: memory that another model may take.

    Attributes:
        failure: why the model that was to be loaded last was not; empty if it was.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        find: Callable[[str], ModelChoice],
        make: Callable[[ModelChoice, EngineSettings], Awaitable[Engine]],
        free_bytes: Callable[[EngineSettings], int] = memory.free_bytes,
    ) -> None:
        self._settings, self._find, self._make, self._free_bytes = settings, find, make, free_bytes
        self._here: dict[str, Resident] = {}
        self._paths: dict[str, Path] = {}
        self._leaving: dict[str, Resident] = {}
        self._loading = ""
        self._first = ""  # the model that the process was started with
        self.failure = ""

    @property
    def default(self) -> Engine | None:
        """Who answers where no model is named."""
        return next(iter(self._here.values()), None)

    def engines(self) -> Mapping[str, Engine]:
        """Those that take requests, by id, the default first. Not to be changed."""
        return self._here

    def states(self) -> dict[str, str]:
        """loading, ready, asleep, waking or leaving, by id."""
        states = {model: resident.state for model, resident in (self._here | self._leaving).items()}
        return states | ({self._loading: "loading"} if self._loading else {})

    def reasons(self) -> tuple[str, ...]:
        """What a person should know of them, in a sentence each."""
        words = {
            "loading": "is being loaded",
            "asleep": "is asleep; the next request wakes it",
            "waking": "is being woken",
            "leaving": "is being unloaded; its answers end first",
        }
        return tuple(f"{model} {words[state]}" for model, state in self.states().items() if state in words)

    def begin(self, engine: Engine, make: Make, path: Path | None) -> None:
        """The model that the process was started with; without a path it is another server's, and never sleeps."""
        self._first = engine.capabilities.model
        sleep_after_s = self._settings.sleep_after_s if path is not None else 0.0
        self._take(Resident(engine, make, sleep_after_s=sleep_after_s), path)

    async def load(self, name: str, *, instead_of: str = "") -> Engine:
        """Load a model of this machine beside the others, or in the place of one, whose answers end first.

        Raises:
            BadRequest: no such model, or its file cannot be loaded; what was to go is back, if it had gone.
            Conflict: it does not fit, or is on its way already.
        """
        if name in self._here:
            return self._here[name]
        if is_path(name):  # who may load models may not ask what else lies on this machine
            raise BadRequest(
                f"{name[:100]!r} is a file; name a model of this machine (`atlas models add` makes one)", param="model_id"
            )
        if self._loading or name in self._leaving:
            what = f"{self._loading} is being loaded" if self._loading else f"{name} is being unloaded"
            raise Conflict(f"{what}; wait until that is done", param="model_id")
        self._loading, self.failure = name, ""
        try:
            choice = await asyncio.to_thread(self._checked, name, instead_of)
            return await self._replace(choice, instead_of) if instead_of else await self._add(choice)
        except AtlasError as error:
            self.failure = f"{name} was not loaded: {error.message}"
            raise
        finally:
            self._loading = ""

    async def unload(self, name: str) -> None:
        """No request can name it from now on; returns when its answers are done, and its memory is free.

        Raises:
            ModelNotFound: it is not loaded.
        """
        resident = self._resident(name)
        del self._here[name]
        self._leaving[name] = resident
        try:
            await resident.leave()
        finally:
            del self._leaving[name]
        log.info("engine.unloaded", model=name)

    async def close(self) -> None:
        for resident in (*self._here.values(), *self._leaving.values()):
            await resident.close()

    def _resident(self, name: str) -> Resident:
        resident = self._here.get(name)
        if resident is None:
            raise ModelNotFound(
                f"model {name[:100]!r} is not loaded; loaded: {', '.join(self._here) or 'none'}", param="model_id"
            )
        return resident

    def _checked(self, name: str, instead_of: str) -> ModelChoice:
        """In a thread: reads files, and asks the driver of a GPU."""
        coming_bytes = 0
        try:
            if instead_of:
                self._resident(instead_of)
                need = memory.need_of(self._path_of(instead_of), self._settings)
                coming_bytes = need.weights_bytes + need.cells_bytes
            choice = self._find(name)
            need = memory.need_of(Path(choice.path), self._settings)
        except OperatorError as error:
            raise BadRequest(error.message, param="model_id") from None
        memory.check_room(name, need, free_bytes=self._free_bytes(self._settings), coming_bytes=coming_bytes)
        return choice

    def _path_of(self, name: str) -> Path:
        path = self._paths.get(name)
        if path is None:
            raise BadRequest(f"model {name!r} is another server's, and takes no memory here", param="instead_of")
        return path

    async def _replace(self, choice: ModelChoice, instead_of: str) -> Engine:
        back = ModelChoice(id=instead_of, path=str(self._path_of(instead_of)))
        await self.unload(instead_of)
        try:
            return await self._add(choice)
        except BadRequest:
            await self._add(back)
            raise

    async def _add(self, choice: ModelChoice) -> Engine:
        settings = self._settings if choice.id == self._first else for_another(self._settings)

        async def make() -> Engine:
            return await self._make(choice, settings)

        try:
            engine = await make()
        except OperatorError as error:
            raise BadRequest(error.message, param="model_id") from None
        log.info("engine.loaded", model=choice.id, context_tokens=engine.capabilities.context_tokens)
        return self._take(Resident(engine, make, sleep_after_s=self._settings.sleep_after_s), Path(choice.path))

    def _take(self, resident: Resident, path: Path | None) -> Engine:
        model = resident.capabilities.model
        self._here[model] = resident
        if path is not None:
            self._paths[model] = path
        return resident


def for_another(settings: EngineSettings) -> EngineSettings:
    """Settings for a model that they do not name: adapters and a draft model fit the one that they name."""
    speculation = "ngram" if settings.speculation == "draft" else settings.speculation
    return msgspec.structs.replace(settings, adapters={}, speculation=speculation)
