"""The serving process: every room built once, bottom to top, and closed in reverse.

Started by the parent of `atlas serve` as `python -m atlas.app LAUNCH`. It may die at any time; the parent starts another.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import structlog
import uvicorn
import uvloop
from litestar.types import ASGIApp

from atlas import control
from atlas.engine import Engine, ModelRegistry, RemoteEngine, load_engine
from atlas.errors import AtlasError, ModelFileError, OperatorError
from atlas.gateway import GatewayDeps, ModelInfo, Readiness, create_app
from atlas.launch import Failed, Launch, Ready, Report
from atlas.log import configure_logging
from atlas.settings import RemoteSettings
from atlas.store import DataDirectory, Store, open_store
from atlas.types import Principal

log = structlog.get_logger("atlas.app")

EngineFactory = Callable[[Launch], Awaitable[Engine]]

SWITCH_INTERVAL_S = 1e-4  # a busy Python thread delays the engine's by this at most; 5 ms is Python's default (contracts.md 1)
DRAIN_MARGIN_S = 1.0  # beyond the gateway's own cut of open streams
PR_SET_PDEATHSIG = 1
REGISTRY_AGE_S = 1.0


class Serving:
    """What changes while the process lives. Written in the event loop's thread only."""

    def __init__(self, launch: Launch, store: Store) -> None:
        self.launch = launch
        self.store = store
        self.engine: Engine | None = None
        self.failure: str | None = None
        self.notices = launch.model.notices if launch.model else ()

    def readiness(self) -> Readiness:
        if self.engine is None:
            name = self.launch.model.id if self.launch.model else "the remote model"
            return Readiness(status="loading", reasons=(f"{name} is being loaded",))
        return Readiness(status="ready", reasons=self.notices)

    async def verify(self, token: str) -> Principal:
        return self.store.verify(token)


class Models:
    """The catalogue as the gateway sees it: the loaded model, then those on this machine, as registry.json has them now."""

    def __init__(self, serving: Serving, registry: ModelRegistry) -> None:
        self._serving = serving
        self._registry = registry
        self._installed: tuple[str, ...] = ()
        self._read_at_s = -math.inf

    def loaded_id(self) -> str | None:
        engine = self._serving.engine
        return engine.capabilities.model if engine else None

    def ids(self) -> Sequence[str]:
        loaded = self.loaded_id()
        return tuple(dict.fromkeys((*((loaded,) if loaded else ()), *self._here())))

    def info(self, model_id: str) -> ModelInfo | None:
        engine = self._serving.engine
        if engine is not None and model_id == engine.capabilities.model:
            return ModelInfo(id=model_id, context_tokens=engine.capabilities.context_tokens)
        return ModelInfo(id=model_id) if model_id in self._here() else None

    def _here(self) -> tuple[str, ...]:
        """Ids on this machine; the file is small, and read at most once a second."""
        now_s = time.monotonic()
        if now_s - self._read_at_s > REGISTRY_AGE_S:
            self._read_at_s = now_s
            try:
                self._installed = tuple(self._registry.installed())
            except ModelFileError as error:
                log.warning("registry.unreadable", reason=error.message)  # the loaded model is served all the same
        return self._installed


class Server(uvicorn.Server):
    """uvicorn that tells the gateway it is stopping, and does not outlive the time it has for that.

    uvicorn alone waits for open streams for ever; here they are told to end (`draining`), then cut, then left.
    """

    def __init__(self, app: ASGIApp, draining: asyncio.Event, *, drain_timeout_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(drain_timeout_s + 0.5),
            )
        )
        self.is_up = asyncio.Event()
        self._draining = draining
        self._loop = asyncio.get_running_loop()
        self._last_moment_s = drain_timeout_s + DRAIN_MARGIN_S + 0.4

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self._loop.call_soon_threadsafe(self._draining.set)
            # A thread of a C library may hold the process; the parent's SIGKILL does not come when the parent is gone.
            last = threading.Timer(self._last_moment_s, os._exit, (0,))
            last.daemon = True
            last.start()
        super().handle_exit(sig, frame)


def main(engine_factory: EngineFactory) -> None:
    """Serve as the last argument says. Never returns."""
    launch = msgspec.json.decode(sys.argv[-1], type=Launch)
    die_with(launch.parent_pid)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    configure_logging(launch.settings.log.level, form=launch.settings.log.format)
    status = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(serve(launch, engine_factory))
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything that must be saved is; waiting for the threads of a model that is still loading would only take time.
    os._exit(status)


async def serve(launch: Launch, engine_factory: EngineFactory) -> int:
    """Serve until a signal says stop, or the engine cannot be made; the exit status."""
    try:
        store = open_store(_directory(launch), preset_key=os.environ.get("ATLAS_API_KEY") or None)
    except OperatorError as error:
        report(launch, Failed(message=error.message))
        return 1
    async with AsyncExitStack() as stack:
        stack.callback(store.close)
        mint_first_key(launch, store)
        serving = Serving(launch, store)
        draining = asyncio.Event()
        server = Server(create_app(_deps(serving, draining)), draining, drain_timeout_s=launch.settings.server.drain_timeout_s)
        controller = await control.serve_control(socket.socket(fileno=launch.control_fd), _control_handlers(serving))
        stack.callback(controller.close)
        loading = asyncio.create_task(load(serving, server, engine_factory))
        # uvicorn raises the signal again once it has shut down; that must not end the process before the ledger is closed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        await server.serve(sockets=[socket.socket(fileno=launch.http_fd)])
        loading.cancel()
        if serving.engine is not None:
            await serving.engine.close()
    return 0 if serving.failure is None else 1


async def load(serving: Serving, server: Server, engine_factory: EngineFactory) -> None:
    """Make the engine beside the running server, which answers /readyz meanwhile; then say that it is ready."""
    try:
        engine = await engine_factory(serving.launch)
    except OperatorError as error:
        serving.failure = error.message
        report(serving.launch, Failed(message=error.message))
        server.should_exit = True
        return
    except Exception:
        # A bug of ours or of a library. The parent starts another process, a few times; the log says why.
        log.exception("engine.failed_to_load")
        serving.failure = "engine failed to load"
        server.should_exit = True
        return
    await server.is_up.wait()
    serving.engine = engine
    capabilities = engine.capabilities
    log.info("engine.loaded", model=capabilities.model, context_tokens=capabilities.context_tokens)
    report(
        serving.launch,
        Ready(model=capabilities.model, context_tokens=capabilities.context_tokens, notices=serving.notices),
    )


async def make_engine(launch: Launch) -> Engine:
    """The engine the settings ask for."""
    if launch.model is None:
        return await meet_remote(launch.settings.remote)
    return await load_engine(Path(launch.model.path), model_id=launch.model.id, settings=launch.settings.engine)


async def meet_remote(remote: RemoteSettings) -> Engine:
    """An engine over another server, whose model we know by name from now on.

    Raises:
        OperatorError: it does not answer as an OpenAI-compatible server does.
    """
    engine = RemoteEngine(remote.url, model=remote.model, api_key=os.environ.get("ATLAS_REMOTE_KEY"), timeout_s=remote.timeout_s)
    try:
        await engine.meet()
    except AtlasError as error:
        await engine.close()
        raise OperatorError(f"remote.url {remote.url}: {error.message}") from None
    return engine


def mint_first_key(launch: Launch, store: Store) -> None:
    """On first start, show a key to the person at the terminal: outside the logger, which keeps things."""
    if launch.settings.auth.mode == "off" or os.environ.get("ATLAS_API_KEY") or store.list():
        return
    key, _ = store.mint("first key")
    print(f"API key, shown this once: {key}\n  export ATLAS_API_KEY={key}", file=sys.stderr, flush=True)  # noqa: T201


def report(launch: Launch, message: Report) -> None:
    """Tell the parent; a parent that is gone needs no answer."""
    try:
        os.write(launch.report_fd, msgspec.json.encode(message) + b"\n")
    except BrokenPipeError:
        log.warning("parent.gone")


def die_with(parent_pid: int) -> None:
    """End this process when its parent ends, however that happens.

    The kernel's death signal is armed here rather than before exec, which clears it for some programs; a parent that ended before
    this line is noticed by its pid.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)


def _directory(launch: Launch) -> DataDirectory:
    directory = DataDirectory(Path(launch.data_dir))
    directory.lock_fd = launch.lock_fd
    return directory


def _deps(serving: Serving, draining: asyncio.Event) -> GatewayDeps:
    settings = serving.launch.settings
    return GatewayDeps(
        engine=lambda: serving.engine,
        models=Models(serving, ModelRegistry(Path(serving.launch.data_dir) / "models")),
        keys=serving,
        readiness=serving.readiness,
        server=settings.server,
        auth=settings.auth,
        anthropic=settings.anthropic,
        draining=draining,
    )


class CreateKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of keys.create."""

    name: str
    expires_at: float | None = None


class RevokeKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of keys.revoke."""

    id: str


def _control_handlers(serving: Serving) -> dict[str, control.Handler]:
    store = serving.store

    async def create(params: dict[str, Any]) -> dict[str, Any]:
        wanted = msgspec.convert(params, CreateKey)
        made = await asyncio.to_thread(store.mint, wanted.name, expires_at=wanted.expires_at)
        return {"key": made.key, "info": made.info}

    async def revoke(params: dict[str, Any]) -> dict[str, Any]:
        return {"key": await asyncio.to_thread(store.revoke, msgspec.convert(params, RevokeKey).id)}

    async def list_keys(_params: dict[str, Any]) -> dict[str, Any]:
        return {"keys": store.list()}

    async def status(_params: dict[str, Any]) -> dict[str, Any]:
        launch = serving.launch
        state = serving.readiness()
        engine = serving.engine
        return {
            "pid": os.getpid(),
            "parent_pid": launch.parent_pid,
            "host": launch.settings.server.host,
            "port": launch.settings.server.port,
            "auth": launch.settings.auth.mode,
            "status": state.status,
            "reasons": state.reasons,
            "model": engine.capabilities.model if engine else None,
            "restarts": launch.restarts,
        }

    return {"keys.create": create, "keys.revoke": revoke, "keys.list": list_keys, "status": status}


if __name__ == "__main__":
    main(make_engine)
