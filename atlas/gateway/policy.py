"""Who may call a route: every handler says it in `opt={"access": ...}`, and an application with one that does not is not made.

An access is a scope ("chat": an API key or access token that has it), or one of:

    public      anybody
    key         any valid API key or access token
    known       any valid API key, access token or browser session
    account     a person: an access token or a browser session, never an API key
    admin       a person who is admin or owner, or an API key of theirs with the scope "admin"
    page        a browser session; without one the browser is sent to the sign-in page
    page-admin  the same, of an admin or owner

Only `known`, `account`, `admin` and the pages look at cookies. Whose things a caller may touch is decided by each handler.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from litestar import Litestar
from litestar.routes import HTTPRoute
from litestar.types import RouteHandlerType

from atlas.errors import Forbidden
from atlas.types import Principal, Scope

Via = Literal["key", "token", "session", "nothing"]  # how a caller has said who they are

SCOPES: frozenset[str] = frozenset(get_args(Scope))
PAGES = frozenset({"page", "page-admin"})
WITH_COOKIES = PAGES | {"known", "account", "admin"}
ACCESSES = WITH_COOKIES | SCOPES | {"public", "key"}


def check_declared(app: Litestar) -> None:
    """Default deny.

    Raises:
        RuntimeError: some handler does not say who may call it, or says something unknown.
    """
    silent = [name for name, handler in handlers_of(app) if handler.opt.get("access") not in ACCESSES]
    if silent:
        raise RuntimeError(f'no known opt={{"access": ...}} in the handlers of {", ".join(sorted(silent))}')


def handlers_of(app: Litestar) -> Iterator[tuple[str, RouteHandlerType]]:
    """("METHOD /path", handler) of everything the application answers, except the OPTIONS that Litestar adds by itself."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in route.route_handler_map.items():
                if method != "OPTIONS":
                    yield f"{method} {route.path}", handler
        else:
            yield f"ANY {route.path}", route.route_handler


def check_permitted(access: str, principal: Principal, via: Via) -> None:
    """Raises Forbidden unless this caller may use a route of this access."""
    if access in ("admin", "page-admin"):
        if not (principal.is_admin and "admin" in principal.scopes):
            raise Forbidden("this is for administrators" + (" and keys of theirs with the scope 'admin'" if via == "key" else ""))
    elif access in SCOPES:
        if access not in principal.scopes:
            raise Forbidden(f"the scope {access!r} is needed here; yours: {', '.join(sorted(principal.scopes)) or 'none'}")
    elif access == "account" and via == "key":
        raise Forbidden("an API key does not stand for a person here; sign in: POST /api/auth/login gives an access token")
