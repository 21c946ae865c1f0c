"""What the dashboard needs from the rest of the program; `app.py` wires it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_urlsafe
from typing import Any, Protocol

from atlas.bench import Runs
from atlas.dashboard.memory import Memory
from atlas.engine import Engine, LoadedModels, ModelRegistry, Upstreams
from atlas.errors import AtlasError
from atlas.sandbox import Sandbox
from atlas.settings import FallbackSettings, Settings
from atlas.store import Journal, Live, Session, Store
from atlas.types import Activity, Principal


class Readiness(Protocol):
    """Whether requests are answered: loading, ready, degraded, draining, unavailable; the reasons are sentences for people."""

    @property
    def status(self) -> str: ...
    @property
    def reasons(self) -> Sequence[str]: ...


class Rates(Protocol):
    """What clients felt over the last five minutes; None where nothing was measured. Durations are seconds."""

    @property
    def requests_per_minute(self) -> float: ...
    @property
    def ttft_p50_s(self) -> float | None: ...
    @property
    def ttft_p95_s(self) -> float | None: ...
    @property
    def inter_token_p50_s(self) -> float | None: ...
    @property
    def inter_token_p95_s(self) -> float | None: ...
    @property
    def tokens_per_s(self) -> float: ...
    @property
    def waiting(self) -> Sequence[int]: ...
    @property
    def running(self) -> int: ...


class Traffic(Protocol):
    """Requests as they run. Called from the event loop; nothing here blocks."""

    def open(self) -> Sequence[Activity]:
        """Those that have not ended."""

    def recent(self, limit: int) -> Sequence[Activity]:
        """Those that ended last, newest first."""

    def find(self, request_id: str) -> Activity | None:
        """One of these."""

    def changes(self) -> AsyncIterator[Any]:
        """Ticks at once and after each change, a few times a second at most."""

    def abort(self, request_id: str, *, actor: str) -> bool:
        """End a request; False if it has ended already."""

    def rates(self) -> Rates: ...


class LogLines(Protocol):
    """The last lines of the log, as they were written: redacted."""

    def lines(self) -> Sequence[Mapping[str, Any]]:
        """Oldest first; each with `timestamp`, `level` and `event`."""


class Exchange(Protocol):
    """What the gateway's gate found out about a request before its handler runs.

    Attributes:
        session: None with `auth.mode = "off"`, and for who is not signed in.
        source: the client's address.
        is_secure: it came by https.
    """

    principal: Principal | None
    session: Session | None

    @property
    def source(self) -> str: ...
    @property
    def is_secure(self) -> bool: ...
    def refuse(self, error: AtlasError) -> None:
        """Note for the log how the request went wrong."""


@dataclass(frozen=True, kw_only=True)
class DashboardDeps:
    """Everything the dashboard is given.

    Attributes:
        live: None where limits are not counted.
        journal: of tasks; None where there is no Redis (tests).
        engine: who answers where no model is named; None while none is loaded.
        loaded: the models of this process, to load and unload; None where there is just `engine` (tests).
        sources: "section.name" -> where its value comes from: file, env or flag; those left out are defaults, or not known.
        hot: "section.name" of the settings that can change while the server runs.
        draining: set when the server begins to stop; event streams end then.
        sandbox: runs code; None where there is none (tests).
        upstreams: other servers that may stand in for a model here.
        benches: what was measured here with `atlas bench`; None where there is no data directory (tests).
        is_unsafe: whoever started the server allowed code to run without isolation; every page says so.
        csrf: stands in for a session's token where people need not sign in.
    """

    store: Store
    live: Live | None
    traffic: Traffic
    engine: Callable[[], Engine | None]
    registry: ModelRegistry
    readiness: Callable[[], Awaitable[Readiness]]
    settings: Callable[[], Settings]
    logs: LogLines
    sources: Callable[[], Mapping[str, str]] = dict
    hot: frozenset[str] = frozenset()
    sandbox: Sandbox | None = None
    journal: Journal | None = None
    loaded: LoadedModels | None = None
    upstreams: Upstreams = field(default_factory=lambda: Upstreams(FallbackSettings(), {}))
    benches: Runs | None = None
    is_unsafe: bool = False
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    memory: Memory = field(default_factory=Memory)
    csrf: str = field(default_factory=lambda: token_urlsafe(32))

    def engines(self) -> Mapping[str, Engine]:
        """Those that answer, by the id of their model; the first is the default."""
        if self.loaded is not None:
            return self.loaded.engines()
        engine = self.engine()
        return {engine.capabilities.model: engine} if engine else {}

    def model_states(self) -> Mapping[str, str]:
        """loading, ready, asleep, waking or leaving, by id."""
        return self.loaded.states() if self.loaded is not None else dict.fromkeys(self.engines(), "ready")
