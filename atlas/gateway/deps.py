"""What the gateway needs from the rest of the program; `app.py` wires it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from atlas.engine import Engine, LoadedModels, Upstreams
from atlas.gateway.sandbox_watch import SandboxWatch
from atlas.gateway.throttle import Throttle
from atlas.gateway.traffic import Traffic
from atlas.gateway.worker_watch import WorkerWatch
from atlas.sandbox import Sandbox
from atlas.settings import (
    AnthropicSettings,
    AuthSettings,
    FallbackSettings,
    LimitSettings,
    QueueSettings,
    ServerSettings,
    Settings,
)
from atlas.store import Journal, KeptResponses, Live, Store


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the catalogue, loaded or not.

    Attributes:
        created: Unix seconds.
        context_tokens: 0 if unknown before the model is loaded.
    """

    id: str
    created: int = 0
    owned_by: str = "atlas"
    context_tokens: int = 0


class ModelCatalog(Protocol):
    """The models this server knows. Called from the event loop: must not block."""

    def loaded_id(self) -> str | None:
        """Id of the model the engine runs; None while none is loaded."""

    def ids(self) -> Sequence[str]:
        """Ids a request may name: the loaded one first, then those registered on this machine."""

    def info(self, model_id: str) -> ModelInfo | None:
        """What is known about a model; None for an unknown id."""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether requests can be answered, and why not or only partly. `draining` is the gateway's to say, and `sandbox` too."""

    status: Literal["loading", "ready", "degraded", "unavailable", "draining"]
    reasons: tuple[str, ...] = ()
    sandbox: str = ""


@dataclass(frozen=True, kw_only=True)
class GatewayDeps:
    """Everything the gateway is given.

    Attributes:
        engine: who answers where no model is named; None while none is loaded: then answering routes say 503 with Retry-After.
        loaded: the models of this process, to load and unload; None where there is just `engine` (tests).
        readiness: for /readyz; asked on each call, so it must be cheap.
        draining: set when the server begins to stop. From then on new requests get 503; open answers go on for
            `server.drain_timeout_s`, then end with an error event. The HTTP server should wait about a second longer.
        live: limits and budgets; None where nothing is limited (auth.mode = "off", tests).
        journal: of tasks; None where there is no Redis (tests).
        responses: answers that are kept; None where none are (tests).
        limits: prices, and the size of a slice.
        settings: everything, for what is derived from it.
        hashing: as many passwords are hashed at a time; more would fill the pool of threads.
        key_checks: how often a user may ask whether some key is valid.
        traffic: what people who watch the server see; filled by the gateway.
        sandbox: runs code; None where there is none (tests).
        workers: how many there are.
        worker_socket: where workers of this machine come to; None: there are none.
        sandbox_socket: of the sandbox, for those workers.
        upstreams: other servers that may stand in for a model here.
        adapter_folder: where adapters lie that may be loaded over HTTP; None: none may.
        sandbox_watch: how it was when /readyz or /metrics last looked.
    """

    engine: Callable[[], Engine | None]
    loaded: LoadedModels | None = None
    models: ModelCatalog
    readiness: Callable[[], Readiness]
    store: Store
    live: Live | None = None
    journal: Journal | None = None
    responses: KeptResponses | None = None
    limits: LimitSettings = field(default_factory=LimitSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    settings: Settings = field(default_factory=Settings)
    traffic: Traffic = field(default_factory=Traffic)
    sandbox: Sandbox | None = None
    sandbox_watch: SandboxWatch = field(default_factory=SandboxWatch)
    workers: WorkerWatch = field(default_factory=WorkerWatch)
    worker_socket: Path | None = None
    sandbox_socket: str = ""
    upstreams: Upstreams = field(default_factory=lambda: Upstreams(FallbackSettings(), {}))
    adapter_folder: Path | None = None
    hashing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    key_checks: Throttle = field(default_factory=lambda: Throttle(30))
    server: ServerSettings = field(default_factory=ServerSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    anthropic: AnthropicSettings = field(default_factory=AnthropicSettings)
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    def engines(self) -> Mapping[str, Engine]:
        """Those that answer, by the id of their model; the first is the default."""
        if self.loaded is not None:
            return self.loaded.engines()
        engine, model = self.engine(), self.models.loaded_id()
        return {model: engine} if engine is not None and model is not None else {}
