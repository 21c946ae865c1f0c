"""Further servers that may answer where a model of ours cannot: each with a breaker of its own, and an engine per model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from atlas.engine.breaker import Breaker
from atlas.engine.group import Group
from atlas.engine.http_pool import is_of_this_machine
from atlas.engine.remote import RemoteEngine
from atlas.errors import AtlasError, EngineOverloaded, EngineUnavailable, SettingsError, UpstreamFailed
from atlas.settings import FallbackSettings, UpstreamSettings
from atlas.types import Prompt


class Upstream:
    """One server. Lives in the event loop.

    Attributes:
        is_local: it is on this machine, and no proxy stands between: nothing that is sent to it leaves.
        outcomes: answers that began, and failures, since the start.
    """

    def __init__(self, name: str, settings: UpstreamSettings) -> None:
        self.name, self.url = name, settings.url
        self.is_local = is_of_this_machine(settings.url)
        self.breaker = Breaker()
        self.outcomes: Counter[str] = Counter()

    def refusal(self) -> EngineUnavailable | None:
        """Why nothing is sent to it now; None if the next request may go."""
        wait_s = self.breaker.wait_s
        if not wait_s:
            return None
        return EngineUnavailable(f"upstream '{self.name}' is left alone for {wait_s:.0f} s more", retry_after_s=wait_s)

    def note_begun(self) -> None:
        """An answer of it has begun."""
        self.outcomes["answered"] += 1
        self.breaker.succeeded()

    def note_silent(self) -> None:
        """It has said nothing for as long as it may."""
        self.outcomes["silent"] += 1
        self.breaker.failed()

    def note(self, error: Exception) -> None:
        """A request to it has ended so. What it finds wrong with a request speaks for the server, not against it."""
        if isinstance(error, EngineOverloaded):
            self.outcomes["overloaded"] += 1
            self.breaker.hold(error.retry_after_s or 1.0)
        elif isinstance(error, UpstreamFailed | EngineUnavailable):
            self.outcomes["failed"] += 1
            self.breaker.failed()
        else:
            self.outcomes["refused"] += 1
            self.breaker.succeeded()


class UpstreamEngine(RemoteEngine):
    """A model of an upstream, by the id it has here: UPSTREAM/MODEL."""

    def __init__(self, upstream: Upstream, model: str, *, api_key: str | None, timeout_s: float) -> None:
        super().__init__(upstream.url, model=model, api_key=api_key, timeout_s=timeout_s, name=f"upstream '{upstream.name}'")
        self.upstream = upstream
        self.capabilities = msgspec.structs.replace(self.capabilities, model=f"{upstream.name}/{model}")

    async def submit(self, prompt: Prompt) -> Group:
        if (refusal := self.upstream.refusal()) is not None:
            raise refusal
        self.upstream.breaker.enter()
        try:
            group = await super().submit(prompt)
        except AtlasError as error:
            self.upstream.note(error)
            raise
        group.on_failure = self.upstream.note
        return group


class Upstreams:
    """Those of the settings, and an engine for each of their models that a chain names.

    Raises:
        SettingsError: a key is not where it is said to be.
    """

    def __init__(self, settings: FallbackSettings, environ: Mapping[str, str]) -> None:
        self.servers = {name: Upstream(name, upstream) for name, upstream in settings.upstreams.items()}
        keys = {name: _key(name, upstream, environ) for name, upstream in settings.upstreams.items()}
        self.engines: dict[str, UpstreamEngine] = {}
        for entry in (entry for chain in settings.chains.values() for entry in chain if "/" in entry):
            name, _, model = entry.partition("/")
            timeout_s = settings.upstreams[name].timeout_s
            self.engines[entry] = UpstreamEngine(self.servers[name], model, api_key=keys[name], timeout_s=timeout_s)

    def reasons(self) -> tuple[str, ...]:
        """Which of them are left alone, in a sentence each."""
        alone = [upstream for upstream in self.servers.values() if upstream.breaker.state != "closed" or upstream.breaker.wait_s]
        return tuple(f"upstream '{each.name}' is left alone after failures or by its own wish" for each in alone)

    async def close(self) -> None:
        for engine in self.engines.values():
            await engine.close()


def _key(name: str, settings: UpstreamSettings, environ: Mapping[str, str]) -> str | None:
    if settings.key_env:
        key = environ.get(settings.key_env, "")
        if not key:
            raise SettingsError(f"fallback.upstreams: the key of '{name}' is in {settings.key_env}, which is not set; export it")
        return key
    if not settings.key_file:
        return None
    path = Path(settings.key_file).expanduser()
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"fallback.upstreams: the key of '{name}' cannot be read from {path}: {error}") from None
    if not key.isascii() or not key.isprintable() or not key:
        raise SettingsError(f"fallback.upstreams: {path} holds no key for '{name}'; write it there in one line")
    return key
