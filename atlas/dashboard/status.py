"""The line at the top of every page: can this server answer, with which model, how busy is it."""

from __future__ import annotations

from typing import Any

from litestar import Response
from litestar.datastructures import Cookie
from markupsafe import Markup

from atlas.dashboard.view import View, fragment, page

# What a status looks like and is called. "degraded" still answers.
MOODS = {
    "ready": ("good", "Ready"),
    "degraded": ("warn", "Degraded"),
    "loading": ("wait", "Loading"),
    "draining": ("warn", "Shutting down"),
}


async def show(
    view: View, template: str, *, status: int = 200, cookies: list[Cookie] | None = None, **context: Any
) -> Response[str]:
    """A page for someone who is signed in, with the status line."""
    line = await status_panel(view)
    return page(view, template, status=status, cookies=cookies, status_line=line, **context)


async def status_panel(view: View) -> Markup:
    return fragment(view, "parts/status.html", **await status_of(view))


async def status_of(view: View) -> dict[str, Any]:
    """What the status templates say: mood, words, reasons, model."""
    readiness = await view.deps.readiness()
    is_draining = view.deps.draining.is_set()
    mood, words = MOODS.get("draining" if is_draining else readiness.status, ("bad", "Unavailable"))
    engine = view.deps.engine()
    model = engine.capabilities.model if engine else None
    return {"mood": mood, "words": words, "reasons": tuple(readiness.reasons), "model": model}
