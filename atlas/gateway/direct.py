"""A short way to the handlers that answer requests: what the framework does for any handler, done for those alone.

A fifth of what a request cost was the framework's. Gate, handlers and replies to errors are the same on both ways, and whatever
is unusual about a request (another site, a body of unknown length, or one that does not fit) is the framework's, which has more
to say about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from litestar import Litestar, Request
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from atlas.gateway.auth import Gate
from atlas.gateway.errors import ClientClosed, handle_error
from atlas.gateway.exchange import Exchange, HTTPRequest
from atlas.gateway.policy import handlers_of
from atlas.server import WHOLE_REPLY

_encoder = msgspec.json.Encoder()


class _Route(NamedTuple):
    handler: HTTPRouteHandler
    decoder: msgspec.json.Decoder[Any]  # of its body


class _Plain(Request[Any, Any, Any]):
    """What handlers of these routes use of a request; the rest of it takes longer to make than their bodies to read."""

    def __init__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self.send = scope, receive, send


class DirectRoutes:
    """In front of `app`'s own handling of the routes at `paths`, each a POST of JSON whose handler takes `request` and `data`."""

    def __init__(self, app: Litestar, gate: Gate, paths: Iterable[str], *, body_limit_bytes: int) -> None:
        self._framework: ASGIApp = app.asgi_handler
        self._gate = gate
        self._body_limit_bytes = body_limit_bytes
        handlers = dict(handlers_of(app))
        self._routes = {path: _route(handlers[f"POST {path}"]) for path in paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == ScopeType.HTTP  # the Boundary sends others elsewhere
        route = self._routes.get(scope["path"]) if scope["method"] == "POST" else None
        exchange: Exchange = scope["state"]["exchange"]
        if route is None or not self._is_usual(exchange.headers):
            await self._framework(scope, receive, send)
            return
        scope["route_handler"], scope["path_template"] = route.handler, scope["path"]
        try:
            if await self._gate.lets_in(scope, send):
                await self._answer(route, scope, receive, send)
        except Exception as error:
            if exchange.status:  # the reply has begun, and cannot be another any more
                raise
            request: HTTPRequest = Request(scope, receive, send)
            await handle_error(request, error).to_asgi_response(None, request)(scope, receive, send)

    def _is_usual(self, headers: Mapping[str, str]) -> bool:
        length = headers.get("content-length", "")
        # An origin is a browser's, and who may read the reply is for CORS to say.
        return length.isdecimal() and 0 < int(length) <= self._body_limit_bytes and "origin" not in headers

    async def _answer(self, route: _Route, scope: HTTPScope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        try:
            data = route.decoder.decode(body)
        except (ValueError, RecursionError):  # msgspec's errors, and those of UTF-8
            await self._framework(scope, _replaying(body, receive), send)
            return
        request = _Plain(scope, receive, send)
        result = await route.handler.fn(request=request, data=data)
        if isinstance(result, msgspec.Struct):
            await _send_json(_encoder.encode(result), scope, send)
        else:
            await result.to_asgi_response(None, request)(scope, receive, send)


def _route(handler: Any) -> _Route:  # what a Litestar application has under its routes
    body = handler.parsed_fn_signature.parameters["data"].annotation
    return _Route(handler, msgspec.json.Decoder(body, strict=False))  # as lenient as the framework


async def _read(receive: Receive) -> bytes:
    message = await receive()
    body = b""
    while message["type"] == "http.request":
        body = body + message["body"] if body else message["body"]
        if not message["more_body"]:
            return body
        message = await receive()
    raise ClientClosed("the client went away before its request was complete")


def _replaying(body: bytes, receive: Receive) -> Receive:
    """`receive` for whoever wants to see the body once more."""
    left = [body]

    async def replay() -> Any:  # a message of ASGI
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return replay


async def _send_json(body: bytes, scope: HTTPScope, send: Send) -> None:
    """At once where the server takes a whole reply."""
    headers = [(b"content-type", b"application/json")]
    if WHOLE_REPLY in (scope.get("extensions") or ()):
        whole: Any = {"type": WHOLE_REPLY, "status": 200, "headers": headers, "body": body}
        await send(whole)
        return
    headers.append((b"content-length", b"%d" % len(body)))
    start: Message = {"type": "http.response.start", "status": 200, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})
