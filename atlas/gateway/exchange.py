"""One request and its answer: identity, clean-up, and what the log says of it."""

from __future__ import annotations

import re
import time
from secrets import token_hex
from typing import Any

from litestar import Request
from litestar.types import HTTPScope
from prometheus_client import CollectorRegistry

from atlas.engine import Group
from atlas.errors import AtlasError, EngineUnavailable
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.proxies import Client
from atlas.types import Generation, Principal, Prompt

HTTPRequest = Request[Any, Any, Any]
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Exchange:
    """Written by the event loop only; lives from the request's first byte until its answer's last.

    Attributes:
        registry: where this application's metrics are.
        model: id of the model that answers; empty until one is chosen.
        groups: what the engine makes for this exchange; all of it is cancelled when the exchange ends.
        is_cut: the server is stopping and has ended this answer early.
    """

    def __init__(self, deps: GatewayDeps, registry: CollectorRegistry, scope: HTTPScope) -> None:
        self.deps = deps
        self.registry = registry
        self.request_id = _request_id(scope)
        self.method = str(scope["method"])
        self.path = str(scope["path"])
        self.principal: Principal | None = None
        self.client = Client()  # the Gate finds out who it is
        self.model = ""
        self.groups: list[Group] = []
        self.embedded_tokens = 0
        self.status = 0
        self.outcome = "completed"
        self.is_cut = False
        self.started_s = time.monotonic()

    @property
    def source(self) -> str:
        """Address of the client, for throttles and the audit log."""
        return self.client.address

    @property
    def is_secure(self) -> bool:
        return self.client.is_secure

    @property
    def owner(self) -> str:
        return self.principal.owner if self.principal else ""

    @property
    def generations(self) -> list[Generation]:
        """Every candidate that has finished."""
        return [generation for group in self.groups for generation in group.generations]

    async def submit(self, prompt: Prompt) -> Group:
        """Hand a prompt to the engine; what it makes belongs to this exchange."""
        engine = self.deps.engine()
        if engine is None:
            raise still_loading()
        group = await engine.submit(prompt)
        self.groups.append(group)
        return group

    def count_embedded(self, num_tokens: int) -> None:
        self.embedded_tokens += num_tokens

    def refuse(self, error: AtlasError) -> None:
        """Note how the exchange went wrong."""
        if self.outcome == "completed":
            self.outcome = error.code

    def cancel(self) -> None:
        for group in self.groups:
            if not group.is_done:
                group.cancel()

    def abandon(self) -> None:
        """The client has gone."""
        self.outcome = "disconnected"
        self.cancel()

    def cut(self) -> None:
        """End the answer because the server stops."""
        self.is_cut = True
        self.cancel()

    def close(self) -> None:
        """Nobody listens any more: stop what still runs."""
        if not all(group.is_done for group in self.groups):
            self.cancel()
            self.outcome = "disconnected" if self.outcome == "completed" else self.outcome

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.started_s

    def count_tokens(self) -> dict[str, int]:
        """Tokens by type; candidates that have not ended are not counted."""
        return {
            "prompt": sum(group.prompt_tokens for group in self.groups) + self.embedded_tokens,
            "cached": sum(group.cached_tokens for group in self.groups),
            "completion": sum(generation.num_tokens for generation in self.generations),
        }

    def line(self) -> dict[str, Any]:
        """What the log says about the exchange: sizes, times and outcome, never a text or a secret."""
        path = self.path[:200]
        line: dict[str, Any] = {"method": self.method, "path": path if path.isprintable() else repr(path)}
        line |= {"status": self.status, "outcome": self.outcome, "wall_s": round(self.wall_s, 4)}
        if self.principal:
            line["key_id"] = self.principal.key_id
        if self.model:
            line["model"] = self.model
            line |= {f"{kind}_tokens": count for kind, count in self.count_tokens().items()}
        firsts = [generation.timings.first_token_s for generation in self.generations if generation.num_tokens]
        return line | ({"ttft_s": round(min(firsts), 4)} if firsts else {})


def still_loading() -> EngineUnavailable:
    return EngineUnavailable("the model is still loading; /readyz says when it is ready", retry_after_s=2)


def exchange_of(request: HTTPRequest) -> Exchange:
    found: Exchange = request.scope["state"]["exchange"]
    return found


def _request_id(scope: HTTPScope) -> str:
    """The client's own id if it is short and plain, else a fresh one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return value.decode()
    return "req_" + token_hex(12)
