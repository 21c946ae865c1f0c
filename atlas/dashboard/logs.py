"""Logs: the last lines the server wrote, as it wrote them: without secrets, prompts and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from litestar import Response, get
from markupsafe import Markup

from atlas.dashboard.status import show
from atlas.dashboard.view import HTTPRequest, View, fragment, view_of

LINES_SHOWN = 200
LEVELS = ("debug", "info", "warning", "error", "critical")
HEAD_FIELDS = ("timestamp", "level", "event", "logger")


class Line(NamedTuple):
    timestamp: str
    level: str
    event: str
    rest: tuple[tuple[str, str], ...]


@get("/logs", opt={"access": "page-admin"})
async def logs(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    return await show(view, "logs.html", panels=await panels(view), levels=LEVELS[:4], shown=LINES_SHOWN)


async def panels(view: View) -> dict[str, Markup]:
    lines = chosen(view.deps.logs.lines(), level=view.query.get("level", ""), text=view.query.get("q", ""))
    return {"lines": fragment(view, "parts/lines.html", lines=lines)}


def chosen(lines: Sequence[Mapping[str, Any]], *, level: str = "", text: str = "") -> list[Line]:
    """Lines of at least `level` that contain `text` in any case, newest first."""
    least = LEVELS.index(level) if level in LEVELS else 0
    found: list[Line] = []
    for raw in reversed(lines):
        line = line_of(raw)
        rank = LEVELS.index(line.level) if line.level in LEVELS else 1
        if rank >= least and text.lower() in as_text(line).lower():
            found.append(line)
            if len(found) == LINES_SHOWN:
                break
    return found


def line_of(raw: Mapping[str, Any]) -> Line:
    rest = tuple((name, str(value)) for name, value in raw.items() if name not in HEAD_FIELDS)
    return Line(str(raw.get("timestamp", "")), str(raw.get("level", "info")), str(raw.get("event", "")), rest)


def as_text(line: Line) -> str:
    return " ".join((line.event, *(f"{name}={value}" for name, value in line.rest)))
