"""Light or dark: as the system has it, or as chosen here; a cookie remembers."""

from __future__ import annotations

from litestar import Response, post
from litestar.datastructures import Cookie

from atlas.dashboard.forms import read_public_form
from atlas.dashboard.view import THEMES, HTTPRequest, local_path, redirect, view_of

YEAR_S = 365 * 86400


@post("/dash/theme", opt={"access": "public", "form": True})
async def theme(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    form = await read_public_form(request)
    chosen = form.choice("theme", THEMES)
    cookie = Cookie(key="theme", value=chosen, path="/", max_age=YEAR_S, httponly=True, secure=view.is_secure, samesite="lax")
    return redirect(local_path(form.text("back", max_length=2000)), cookies=[cookie])
