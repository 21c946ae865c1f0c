"""One request and its answer: identity, clean-up, and the one line in the log."""

from __future__ import annotations

import asyncio
import re
import time
from secrets import token_hex
from typing import Any

import structlog
from litestar import Request
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from atlas.engine import Group
from atlas.errors import AtlasError, EngineUnavailable
from atlas.gateway.deps import GatewayDeps
from atlas.types import Generation, Principal, Prompt

log = structlog.get_logger("atlas.gateway")

HTTPRequest = Request[Any, Any, Any]
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
QUIET_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics"})  # polled every few seconds: not worth a line


class Exchange:
    """Written by the event loop only; lives from the request's first byte until its answer's last.

    Attributes:
        model: id of the model that answers; empty until one is chosen.
        groups: what the engine makes for this exchange; all of it is cancelled when the exchange ends.
        is_cut: the server is stopping and has ended this answer early.
    """

    def __init__(self, deps: GatewayDeps, scope: HTTPScope) -> None:
        self.deps = deps
        self.request_id = _request_id(scope)
        self.method = str(scope["method"])
        self.path = str(scope["path"])
        self.principal: Principal | None = None
        self.model = ""
        self.groups: list[Group] = []
        self.embedded_tokens = 0
        self.status = 0
        self.outcome = "completed"
        self.is_cut = False
        self.started_s = time.monotonic()

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
        """Nobody listens any more: stop what still runs, and write the line."""
        if not all(group.is_done for group in self.groups):
            self.cancel()
            self.outcome = "disconnected" if self.outcome == "completed" else self.outcome
        if self.path not in QUIET_PATHS:
            log.info("request.answered", **self._line())

    def _line(self) -> dict[str, Any]:
        line: dict[str, Any] = {"method": self.method, "path": self.path, "status": self.status, "outcome": self.outcome}
        line["wall_s"] = round(time.monotonic() - self.started_s, 4)
        if self.principal:
            line["key_id"] = self.principal.key_id
        if self.model:
            line["model"] = self.model
        if self.embedded_tokens:
            line["prompt_tokens"] = self.embedded_tokens
        if self.groups:
            line |= self._tokens()
        return line

    def _tokens(self) -> dict[str, Any]:
        generations = self.generations
        first = [generation.timings.first_token_s for generation in generations if generation.num_tokens]
        return {
            "prompt_tokens": sum(group.prompt_tokens for group in self.groups),
            "cached_tokens": sum(group.cached_tokens for group in self.groups),
            "completion_tokens": sum(generation.num_tokens for generation in generations),
            "ttft_s": round(min(first), 4) if first else None,
        }


def still_loading() -> EngineUnavailable:
    return EngineUnavailable("the model is still loading; /readyz says when it is ready", retry_after_s=2)


def exchange_of(request: HTTPRequest) -> Exchange:
    found: Exchange = request.scope["state"]["exchange"]
    return found


class Exchanges:
    """The outermost layer: opens an `Exchange` per request, and closes it whatever happened inside."""

    def __init__(self, app: ASGIApp, deps: GatewayDeps) -> None:
        self.app = app
        self.deps = deps
        self.open: set[Exchange] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self.app(scope, receive, send)
            return
        exchange = Exchange(self.deps, scope)
        scope["state"]["exchange"] = exchange
        self.open.add(exchange)
        try:
            with structlog.contextvars.bound_contextvars(request_id=exchange.request_id):
                try:
                    await self.app(scope, receive, _identified(send, exchange))
                finally:
                    exchange.close()
        finally:
            self.open.discard(exchange)

    async def cut_after_drain(self) -> None:
        """Once the server drains, give open answers their time, then end them."""
        await self.deps.draining.wait()
        await asyncio.sleep(self.deps.server.drain_timeout_s)
        for exchange in tuple(self.open):
            exchange.cut()


def _identified(send: Send, exchange: Exchange) -> Send:
    names = [b"x-request-id"] + ([b"request-id"] if exchange.path.startswith("/v1/messages") else [])
    headers = [(name, exchange.request_id.encode()) for name in names]

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            message["headers"] = [*message["headers"], *headers]
        await send(message)

    return wrapped


def _request_id(scope: HTTPScope) -> str:
    """The client's own id if it is short and plain, else a fresh one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return value.decode()
    return "req_" + token_hex(12)
