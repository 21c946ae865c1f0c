"""The outermost layer of the application: every request passes here first and last, unknown routes included."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from atlas.gateway.deps import GatewayDeps
from atlas.gateway.exchange import Exchange
from atlas.gateway.headers import guarded_headers
from atlas.gateway.meter import Meter
from atlas.gateway.metrics import Metrics
from atlas.gateway.telemetry import open_telemetry
from atlas.log import is_logged

log = structlog.get_logger("atlas.gateway")

QUIET_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics"})  # polled every few seconds: not worth a line


class Boundary:
    """The outermost layer: opens an `Exchange` per request, and closes it whatever happened inside."""

    def __init__(self, app: ASGIApp, deps: GatewayDeps) -> None:
        self.app = app
        self.deps = deps
        self.meter = Meter(deps)
        self.metrics = Metrics(deps, self.meter)
        self.telemetry = open_telemetry(deps.settings.telemetry.otlp_url)
        self.open: set[Exchange] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self.app(scope, receive, send)
            return
        exchange = Exchange(self.deps, self.metrics.registry, self.meter, scope, receive)
        scope["state"]["exchange"] = exchange
        self.open.add(exchange)
        structlog.contextvars.bind_contextvars(request_id=exchange.request_id)  # of this request's task alone
        try:
            await self.app(scope, receive, _identified(send, exchange))
        finally:
            await self._close(exchange, route=str(scope.get("path_template", "(none)")))

    async def _close(self, exchange: Exchange, *, route: str) -> None:
        self.open.discard(exchange)
        exchange.receive = None  # the connection holds the exchange: as a circle they would cost the collector 60 us a request
        await exchange.close()
        self.metrics.observe(exchange, route=route, wall_s=exchange.wall_s)
        if self.telemetry is not None and (usage := exchange.usage) is not None:
            self.telemetry.record(
                usage, request_id=exchange.request_id, status=exchange.status, traceparent=exchange.headers.get("traceparent", "")
            )
        if exchange.path not in QUIET_PATHS and is_logged(logging.INFO):
            log.info("request.answered", **exchange.line())

    async def close(self) -> None:
        """No request will come any more: finish what is still to be written and sent."""
        await self.meter.books.close()
        if self.telemetry is not None:
            await asyncio.to_thread(self.telemetry.close)

    async def cut_after_drain(self) -> None:
        """Once the server drains, give open answers their time, then end them."""
        await self.deps.draining.wait()
        await asyncio.sleep(self.deps.server.drain_timeout_s)
        for exchange in tuple(self.open):
            exchange.cut()


def _identified(send: Send, exchange: Exchange) -> Send:
    async def wrapped(message: Any) -> None:  # ASGI's messages, and the server's own of a whole reply
        if "status" in message:
            added = exchange.begin_reply(message["status"])
            message["headers"] = [*guarded_headers([*message["headers"]], exchange.path), *added]
        await send(message)

    return wrapped
