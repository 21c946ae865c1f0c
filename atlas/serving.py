"""The serving process as its rooms see it: what it holds, the catalogue of models, what the command line may ask of it."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from atlas import control
from atlas.directory import DataDirectory
from atlas.engine import Engine, LoadedModels, ModelRegistry, Upstreams
from atlas.errors import ModelFileError, SettingsError
from atlas.gateway import ModelInfo, Readiness, WorkerWatch
from atlas.launch import Launch, ModelChoice
from atlas.sandbox import Sandbox
from atlas.settings import EngineSettings, sources_of
from atlas.store import OPERATIONS, Change, Journal, KeptResponses, Live, Store, run_operation, write_backup

log = structlog.get_logger("atlas.app")

ACTOR = "operator"  # in the audit log: the person at the command line, as the store has it
EngineFactory = Callable[[Launch], Awaitable[Engine]]

REGISTRY_AGE_S = 1.0
SOCKET_PATH_BYTES = 107  # unix(7)


def kept_responses(launch: Launch) -> KeptResponses:
    settings = launch.settings.responses
    folder = Path(launch.data_dir) / "blobs" / "responses"
    return KeptResponses(folder, keep_s=settings.keep_s, limit_bytes=settings.keep_mb * 1024 * 1024)


class Serving:
    """What changes while the process lives. Written in the event loop's thread only.

    Raises:
        SettingsError: the key of an upstream is not where the settings say.
    """

    def __init__(
        self, launch: Launch, store: Store, live: Live | None, journal: Journal | None, *, make_engine: EngineFactory
    ) -> None:
        self.launch = launch
        self.settings = launch.settings
        self.config = Path(launch.config_path) if launch.config_path else None
        self.sources = self.find_sources()
        self.store = store
        self.live = live
        self.journal = journal
        self.responses = kept_responses(launch)
        self.workers = WorkerWatch()
        self.worker_socket = held_directory(launch).path / "workers.sock" if journal else None
        self.registry = ModelRegistry(Path(launch.data_dir) / "models")
        self.upstreams = Upstreams(self.settings.fallback, os.environ)
        self.make_engine = make_engine
        self.loaded = LoadedModels(self.settings.engine, find=self.registry.find, make=self.make_choice)
        self.is_loading = True
        self.failure: str | None = None
        self.notices = launch.model.notices if launch.model else ()
        self.sandbox = Sandbox(
            self.settings.sandbox,
            socket_path=sandbox_socket(launch.data_dir),
            is_unsafe=launch.is_unsafe,
            log_settings=self.settings.log,
        )

    def find_sources(self) -> dict[str, str]:
        """Where each setting comes from; unknown if the file has been spoilt since it was read."""
        try:
            return sources_of(self.settings, self.config, os.environ)
        except SettingsError:
            return {}

    @property
    def engine(self) -> Engine | None:
        """Who answers where no model is named."""
        return self.loaded.default

    async def make_choice(self, choice: ModelChoice, engine: EngineSettings) -> Engine:
        """Another model than the one the process was started with, or with other settings."""
        settings = msgspec.structs.replace(self.settings, engine=engine)
        return await self.make_engine(msgspec.structs.replace(self.launch, model=choice, settings=settings))

    def readiness(self) -> Readiness:
        if self.engine is not None:
            return Readiness(status="ready", reasons=(*self.notices, *self.loaded.reasons()))
        if self.is_loading:
            name = self.launch.model.id if self.launch.model else "the remote model"
            return Readiness(status="loading", reasons=(f"{name} is being loaded",))
        reasons = self.loaded.reasons() or ("no model is loaded; `atlas models load NAME` loads one",)
        is_coming = "loading" in self.loaded.states().values()
        return Readiness(status="loading" if is_coming else "unavailable", reasons=reasons)


class Models:
    """The catalogue as the gateway sees it: the loaded model, then those on this machine, as registry.json has them now."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._installed: tuple[str, ...] = ()
        self._read_at_s = -math.inf

    def loaded_id(self) -> str | None:
        return next(iter(self._serving.loaded.engines()), None)

    def ids(self) -> Sequence[str]:
        return tuple(dict.fromkeys((*self._serving.loaded.engines(), *self._here())))

    def info(self, model_id: str) -> ModelInfo | None:
        engine = self._serving.loaded.engines().get(model_id)
        if engine is not None:
            return ModelInfo(id=model_id, context_tokens=engine.capabilities.context_tokens)
        return ModelInfo(id=model_id) if model_id in self._here() else None

    def _here(self) -> tuple[str, ...]:
        """Ids on this machine; the file is small, and read at most once a second."""
        now_s = time.monotonic()
        if now_s - self._read_at_s > REGISTRY_AGE_S:
            self._read_at_s = now_s
            try:
                self._installed = tuple(self._serving.registry.installed())
            except ModelFileError as error:
                log.warning("registry.unreadable", reason=error.message)  # the loaded model is served all the same
        return self._installed


def sandbox_socket(data_dir: str) -> Path | None:
    """Where `atlas verify` finds the pool; None in a folder too deep for a socket's address: then it starts a pool of its own."""
    path = Path(data_dir) / "sandbox.sock"
    return path if len(os.fsencode(path)) <= SOCKET_PATH_BYTES else None


def held_directory(launch: Launch) -> DataDirectory:
    """The data directory, whose lock the parent holds."""
    directory = DataDirectory(Path(launch.data_dir))
    directory.lock_fd = launch.lock_fd
    return directory


class Load(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of models.load and models.unload."""

    name: str
    instead_of: str = ""


class Backup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of backup: the file to write."""

    target: str


def control_handlers(serving: Serving) -> dict[str, control.Handler]:
    """What the command line may ask over the control socket."""
    launch = serving.launch

    def operation(method: str) -> control.Handler:
        async def run(params: dict[str, Any]) -> Any:
            return await asyncio.to_thread(run_operation, serving.store, method, params)

        return run

    async def backup(params: dict[str, Any]) -> dict[str, Any]:
        wanted = msgspec.convert(params, Backup)
        live_url = "" if launch.settings.redis.url else launch.redis_url
        ledger_url = launch.settings.ledger.url
        target = Path(wanted.target)
        manifest = await asyncio.to_thread(write_backup, held_directory(launch), target, ledger_url=ledger_url, live_url=live_url)
        return {"files": len(manifest.files)}

    async def load(params: dict[str, Any]) -> dict[str, Any]:
        wanted = msgspec.convert(params, Load)
        engine = await serving.loaded.load(wanted.name, instead_of=wanted.instead_of)
        await note("model.loaded", wanted.name)
        return {"model": engine.capabilities.model, "context_tokens": engine.capabilities.context_tokens}

    async def unload(params: dict[str, Any]) -> dict[str, Any]:
        wanted = msgspec.convert(params, Load)
        await serving.loaded.unload(wanted.name)
        await note("model.unloaded", wanted.name)
        return {"model": wanted.name}

    async def note(action: str, model: str) -> None:
        change = Change(at=time.time(), actor=ACTOR, action=action, object=model[:64])
        await asyncio.to_thread(serving.store.audit.note, change)

    async def status(_params: dict[str, Any]) -> dict[str, Any]:
        state = serving.readiness()
        engine = serving.engine
        return {
            "pid": os.getpid(),
            "parent_pid": launch.parent_pid,
            "host": launch.settings.server.host,
            "port": launch.settings.server.port,
            "url": launch.settings.server.url,
            "tls_ca": launch.settings.server.tls == "auto" and f"{launch.data_dir}/tls/ca.pem",
            "auth": launch.settings.auth.mode,
            "status": state.status,
            "reasons": state.reasons,
            "model": engine.capabilities.model if engine else None,
            "models": serving.loaded.states(),
            "restarts": launch.restarts,
            "workers": serving.workers.counts(),
        }

    own = {"backup": backup, "status": status, "models.load": load, "models.unload": unload}
    return {**{method: operation(method) for method in OPERATIONS}, **own}
