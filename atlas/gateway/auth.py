"""What every request has to pass before its handler: a host we answer for, somebody we know, the right to this route, plain JSON.

Each handler declares its access (policy.py); `Gate` finds out who is asking, from a key, an access token or a session cookie, and
holds one against the other. Browsers send cookies along with requests that other sites make them send; so a request that changes
something in the name of a session, and every form, must come from one of our own pages.

Not covered: what of other users a permitted caller may see (the handlers'), and how much they may use (the meter's).
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import socket
from functools import lru_cache
from typing import Any, NamedTuple, get_args
from urllib.parse import quote

import structlog
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from atlas.errors import BadRequest, EngineUnavailable, Forbidden, Unauthorized
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.errors import HostNotAllowed, UnsupportedMediaType
from atlas.gateway.exchange import Exchange
from atlas.gateway.policy import PAGES, WITH_COOKIES, Via, check_permitted
from atlas.gateway.proxies import client_of
from atlas.store import Session
from atlas.types import Principal
from atlas.types import Scope as KeyScope

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SAFE_METHODS = frozenset({"GET", "HEAD"})
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
# auth.mode = "off", on loopback only
ANYONE = Principal(owner="anyone", name="anyone", role="owner", scopes=frozenset(get_args(KeyScope)))
NO_CREDENTIAL = "no API key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY' (atlas keys create makes one)"
_TOKEN = re.compile(r"eyJ[\w-]*\.[\w-]+\.[\w-]+")  # a JWT, as opposed to a key


class Caller(NamedTuple):
    """Who is asking, and how they said so."""

    principal: Principal
    via: Via
    session: Session | None = None


class SignInFirst(Exception):
    """A person opened a page without being signed in; they are shown the way."""


class Gate(ASGIMiddleware):
    """Default deny, in front of every route."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, deps: GatewayDeps) -> None:
        self.deps = deps
        self.hosts = LOOPBACK_NAMES | {deps.server.host, *deps.server.allowed_hosts, socket.gethostname().lower()}

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        assert scope["type"] == ScopeType.HTTP  # `scopes` says so
        if await self.lets_in(scope, send):
            await next_app(scope, receive, send)

    async def lets_in(self, scope: HTTPScope, send: Send) -> bool:
        """Whether the request may go on; if not it has been answered, or this raises what stands against it."""
        exchange: Exchange = scope["state"]["exchange"]
        headers = exchange.headers
        check_host(headers.get("host", ""), self.hosts)
        try:
            if scope["method"] != "OPTIONS":
                await self._admit(scope, exchange, headers)
        except SignInFirst:
            await _redirect(_sign_in_url(scope), send)
            return False
        return True

    async def _admit(self, scope: HTTPScope, exchange: Exchange, headers: dict[str, str]) -> None:
        exchange.client = client_of(scope, headers, self.deps.server.trusted_proxies)
        opt = scope["route_handler"].opt
        if opt.get("local") and exchange.client.is_local:
            return
        caller = await self._identify(opt, exchange, headers)
        if caller is not None:
            exchange.principal, exchange.session = caller.principal, caller.session
            structlog.contextvars.bind_contextvars(key_id=caller.principal.key_id)
        if opt["access"] != "public":
            assert caller is not None  # `_identify` raises without one
            check_permitted(opt["access"], caller.principal, caller.via)
            if self.deps.draining.is_set():
                raise EngineUnavailable("the server is shutting down", retry_after_s=self.deps.server.drain_timeout_s + 2)
        if scope["method"] not in SAFE_METHODS:
            kind = check_body(headers, with_forms=access_is_page(opt))
            check_origin(caller, headers, kind=kind, takes_forms=access_is_page(opt))

    async def _identify(self, opt: dict[str, Any], exchange: Exchange, headers: dict[str, str]) -> Caller | None:
        """Who is asking; None for a public route that nobody in particular asks for."""
        access = opt["access"]
        if self.deps.auth.mode == "off":
            return Caller(ANYONE, "nothing")
        credential = None if access in PAGES or access == "public" else extract_credential(headers)
        if credential is not None:
            return self._by_credential(credential)
        if access in WITH_COOKIES or opt.get("form"):
            caller = await self._by_cookie(exchange, headers)
            if caller is not None:
                return caller
        if access == "public":
            return None
        # A script of the page, unlike the person before it, cannot follow us to the sign-in page.
        if access in PAGES and headers.get("sec-fetch-dest") != "empty":
            raise SignInFirst
        raise Unauthorized(NO_CREDENTIAL if access not in PAGES else "you are not signed in, or no longer; reload the page")

    def _by_credential(self, credential: str) -> Caller:
        if _TOKEN.fullmatch(credential):
            return Caller(self.deps.store.sessions.verify_access(credential), "token")
        return Caller(self.deps.store.keys.verify(credential), "key")

    async def _by_cookie(self, exchange: Exchange, headers: dict[str, str]) -> Caller | None:
        token = _cookies(headers).get(exchange.client.cookie)
        sessions = self.deps.store.sessions
        session = await asyncio.to_thread(sessions.find, token) if token else None
        return Caller(sessions.principal(session.user), "session", session) if session else None


def access_is_page(opt: dict[str, Any]) -> bool:
    return opt["access"] in PAGES or bool(opt.get("form"))


def extract_credential(headers: dict[str, str]) -> str | None:
    """The one key or access token a request carries, from `Authorization: Bearer` or `x-api-key`; None if there is none.

    Raises:
        BadRequest: there are two, and they differ.
    """
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    bearer = rest.strip() if scheme.lower() == "bearer" else ""
    key = headers.get("x-api-key", "").strip()
    if bearer and key and bearer != key:
        raise BadRequest("the Authorization and x-api-key headers carry different keys; send one")
    return bearer or key or None


def check_host(host: str, allowed: frozenset[str] | set[str]) -> None:
    """Against DNS rebinding: an attacker's name that points here is refused, with any port; IP addresses cannot be rebound."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name not in allowed and not _is_address(name):
        raise HostNotAllowed(f"host {host[:100]!r} is not one of this server's names; add it to server.allowed_hosts")


def check_body(headers: dict[str, str], *, with_forms: bool) -> str:
    """The content type: plain JSON only (a compressed body could unfold past every limit), forms on pages; "" without a body."""
    coding = headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise UnsupportedMediaType(f"content-encoding {coding[:40]!r} is not accepted; send the body uncompressed")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    if kind == JSON or (is_empty and not kind) or (kind == FORM and with_forms):
        return kind
    raise UnsupportedMediaType(f"content-type {kind[:40]!r} is not accepted; send application/json")


def check_origin(caller: Caller | None, headers: dict[str, str], *, kind: str, takes_forms: bool) -> None:
    """Whether one of our own pages sent this request, where that matters: with a session, with forms, and where nobody signs in.

    Raises:
        Forbidden: it came from another site, or without the token of its session. (Forms carry the token in a field, which their
            handler checks.)
    """
    session = caller.session if caller else None
    is_open = caller is not None and caller.via == "nothing"
    # Other sites cannot send JSON without asking first (CORS), and only a browser can be made to send something.
    is_luring = is_open and kind != JSON and ("sec-fetch-site" in headers or "origin" in headers)
    if (session is not None or takes_forms or is_luring) and not is_same_origin(headers):
        raise Forbidden("another site sent this request, or a program used a session's cookie; programs use API keys")
    if session is not None and not (kind == FORM and takes_forms) and not _has_csrf_token(session, headers):
        raise Forbidden("the header x-csrf-token is missing, or not this session's; reload the page")


def is_same_origin(headers: dict[str, str]) -> bool:
    """What browsers say of the page a request comes from. Both headers are out of the reach of scripts."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    return headers.get("origin", "").partition("://")[2] == headers.get("host")


def _has_csrf_token(session: Session, headers: dict[str, str]) -> bool:
    return hmac.compare_digest(headers.get("x-csrf-token", "").encode(), session.csrf.encode())


def _sign_in_url(scope: HTTPScope) -> str:
    query = scope["query_string"].decode("latin-1")
    exchange: Exchange = scope["state"]["exchange"]
    back = (exchange.path + (f"?{query}" if query else "")) if exchange.method == "GET" else "/"
    return f"/signin?next={quote(back, safe='')}"


async def _redirect(url: str, send: Send) -> None:
    await send({"type": "http.response.start", "status": 303, "headers": [(b"location", url.encode("ascii"))]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _cookies(headers: dict[str, str]) -> dict[str, str]:
    pairs = (part.partition("=") for part in headers.get("cookie", "").split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


@lru_cache(maxsize=1024)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
