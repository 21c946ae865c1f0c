"""One person's look at one page: who asks, what for, and how the answer is rendered."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import urlencode

import jinja2
from litestar import Request, Response
from litestar.datastructures import Cookie
from markupsafe import Markup

from atlas.dashboard import units
from atlas.dashboard.deps import DashboardDeps, Exchange
from atlas.errors import BadRequest, Unauthorized
from atlas.settings import packaged
from atlas.store import Session
from atlas.types import Principal

HTTPRequest = Request[Any, Any, Any]
_STRANGE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
Theme = Literal["auto", "light", "dark"]
THEMES: tuple[Theme, ...] = ("auto", "light", "dark")

# The gateway adds what holds for every page: a content policy without inline script and style, and the like.
HEADERS = {"cross-origin-opener-policy": "same-origin", "cache-control": "no-store"}


@dataclass(frozen=True, kw_only=True)
class View:
    """Attributes:
    session: None where people need not sign in.
    query: of the address; of a repeated name the last counts.
    is_reading: the method is GET.
    base_url: how this browser reaches the server, without a slash at the end.
    """

    deps: DashboardDeps
    principal: Principal | None
    session: Session | None
    source: str
    is_secure: bool
    path: str
    is_reading: bool
    query: Mapping[str, str]
    base_url: str
    theme: Theme

    @property
    def csrf(self) -> str:
        return self.session.csrf if self.session else self.deps.csrf

    @property
    def who(self) -> Principal:
        """The one who is signed in."""
        if self.principal is None:
            raise Unauthorized("sign in first")
        return self.principal

    @property
    def is_admin(self) -> bool:
        return self.principal is not None and self.principal.is_admin

    @property
    def is_owner(self) -> bool:
        return self.principal is not None and self.principal.role == "owner"

    @property
    def only_owner(self) -> str | None:
        """Whose requests and keys may be seen: a filter for the store, None for everyone's."""
        return None if self.is_admin else self.who.owner

    @property
    def actor(self) -> str:
        """Who the audit log says it was."""
        return self.who.owner

    @property
    def back(self) -> str:
        """Where to return to: this page, or the overview if it answers a form."""
        return self.link() if self.is_reading else "/"

    def link(self, **changes: str) -> str:
        """This page's address with some of its query changed; an empty value drops a name."""
        wanted = {name: value for name, value in {**self.query, **changes}.items() if value}
        return self.path + ("?" + urlencode(wanted) if wanted else "")


def deps_of(request: HTTPRequest) -> DashboardDeps:
    deps = request.route_handler.opt["dashboard"]()
    assert isinstance(deps, DashboardDeps)
    return deps


def view_of(request: HTTPRequest) -> View:
    """For a handler.

    Raises:
        BadRequest: the address holds characters that no page of ours writes, and that PostgreSQL would not take.
    """
    texts = (request.url.path, *request.query_params.values())
    if any(_STRANGE.search(text) for text in texts):
        raise BadRequest("the address holds control characters")
    return bare_view(request)


def bare_view(request: HTTPRequest) -> View:
    """The same of an address that may hold anything: for saying what is wrong with it."""
    exchange: Exchange = request.scope["state"]["exchange"]
    scheme = "https" if exchange.is_secure else "http"
    theme = request.cookies.get("theme", "auto")
    return View(
        deps=deps_of(request),
        principal=exchange.principal,
        session=exchange.session,
        source=exchange.source,
        is_secure=exchange.is_secure,
        path=request.url.path,
        is_reading=request.method == "GET",
        query=dict(request.query_params.items()),
        base_url=f"{scheme}://{request.headers.get('host', '')}",
        theme=next((known for known in THEMES if known == theme), "auto"),
    )


def page(view: View, template: str, *, status: int = 200, cookies: list[Cookie] | None = None, **context: Any) -> Response[str]:
    """A whole page."""
    html = environment().get_template(template).render(view=view, **context)
    return Response(html, media_type="text/html", status_code=status, headers=HEADERS, cookies=cookies or [])


def fragment(view: View, template: str, **context: Any) -> Markup:
    """A piece of a page, sent with it and again whenever it has changed."""
    return Markup(environment().get_template(template).render(view=view, **context))  # noqa: S704  # autoescaped inside


def redirect(path: str, *, cookies: list[Cookie] | None = None) -> Response[str]:
    return Response("", status_code=303, headers={**HEADERS, "location": path}, cookies=cookies or [])


def local_path(path: str, default: str = "/") -> str:
    """`path` if it leads to this server and nowhere else, for what an address says comes next."""
    is_local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if is_local else default


@cache
def environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(packaged("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("count", "exact", "rate", "seconds", "size", "percent", "money", "moment", "iso", "ago"):
        found.filters[name] = getattr(units, name)
    found.filters["as_json"] = lambda value: json.dumps(value, indent=2)
    found.globals["asset"] = asset_path
    found.globals["now"] = time.time
    return found


@cache
def asset_path(name: str) -> str:
    """Address of an asset; its content's hash is in it, so that browsers may keep it for good."""
    digest = sha256((packaged("templates") / "assets" / name).read_bytes()).hexdigest()[:12]
    return f"/dash/assets/{name}?v={digest}"
