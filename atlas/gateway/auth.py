"""What every request has to pass before its handler: a host we answer for, plain JSON, a key, a server that is not stopping.

Not covered: TLS, quotas, and scopes of keys (every valid key may use every route).
"""

from __future__ import annotations

import ipaddress
import socket

import structlog
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from atlas.errors import BadRequest, EngineUnavailable, Unauthorized
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.errors import HostNotAllowed, UnsupportedMediaType
from atlas.types import Principal

PUBLIC_PATHS = frozenset({"/livez", "/readyz", "/health"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
ANYONE = Principal(owner="anyone", name="anyone", role="owner")  # auth.mode = "off": loopback only


class Gate(ASGIMiddleware):
    """Default deny, in front of every route."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, deps: GatewayDeps) -> None:
        self.deps = deps
        self.hosts = LOOPBACK_NAMES | {deps.server.host, *deps.server.allowed_hosts, socket.gethostname().lower()}

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        assert scope["type"] == ScopeType.HTTP  # `scopes` says so
        headers = _headers(scope)
        check_host(headers.get("host", ""), self.hosts)
        if scope["path"] not in PUBLIC_PATHS and scope["method"] != "OPTIONS":
            await self._admit(scope, headers)
        await next_app(scope, receive, send)

    async def _admit(self, scope: HTTPScope, headers: dict[str, str]) -> None:
        principal = ANYONE if self.deps.auth.mode == "off" else await self.deps.keys.verify(extract_key(headers))
        scope["state"]["exchange"].principal = principal
        structlog.contextvars.bind_contextvars(key_id=principal.key_id)
        if self.deps.draining.is_set():
            raise EngineUnavailable("the server is shutting down", retry_after_s=self.deps.server.drain_timeout_s + 2)
        if scope["method"] in ("POST", "PUT", "PATCH"):
            check_body_headers(headers)


def extract_key(headers: dict[str, str]) -> str:
    """The one key a request carries, from `Authorization: Bearer` or `x-api-key`.

    Raises:
        Unauthorized: there is none.
        BadRequest: there are two, and they differ.
    """
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    found = {bearer.strip()} if scheme.lower() == "bearer" else set()
    found = {key for key in (*found, headers.get("x-api-key", "").strip()) if key}
    if len(found) > 1:
        raise BadRequest("the Authorization and x-api-key headers carry different keys; send one")
    if not found:
        raise Unauthorized("no API key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY' (atlas keys create makes one)")
    return found.pop()


def check_host(host: str, allowed: frozenset[str] | set[str]) -> None:
    """Against DNS rebinding: an attacker's name that points here is refused, with any port; IP addresses cannot be rebound."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name not in allowed and not _is_address(name):
        raise HostNotAllowed(f"host {host[:100]!r} is not one of this server's names; add it to server.allowed_hosts")


def check_body_headers(headers: dict[str, str]) -> None:
    """Plain JSON only: a compressed body could unfold past every limit."""
    coding = headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise UnsupportedMediaType(f"content-encoding {coding[:40]!r} is not accepted; send the body uncompressed")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType(f"content-type {kind[:40]!r} is not accepted; send application/json")


def _headers(scope: HTTPScope) -> dict[str, str]:
    """Header names are lower case in ASGI; of a repeated one the last counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
