"""Settings: every value, its default, where it comes from, and whether it can change while the server runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from functools import cache
from typing import Any, NamedTuple

import msgspec
from litestar import Response, get

from atlas.dashboard.status import show
from atlas.dashboard.view import HTTPRequest, view_of
from atlas.settings import Section, Settings, packaged

SECRET_ENDINGS = ("_password", "_secret", "_token")  # no setting is a secret today; one that becomes one is masked at once
MASK = "••••"


class Setting(NamedTuple):
    """One row. `source` is default, file, env or flag, or "set" where that is not known."""

    section: str
    name: str
    value: str
    default: str
    source: str
    is_hot: bool
    about: str


@get("/settings", opt={"access": "page-admin"})
async def settings(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    rows = list(rows_of(view.deps.settings(), view.deps.sources(), view.deps.hot))
    sections = {
        section: [row for row in rows if row.section == section] for section in dict.fromkeys(row.section for row in rows)
    }
    return await show(view, "settings.html", sections=sections, num_changed=sum(row.source != "default" for row in rows))


def rows_of(current: Settings, sources: Mapping[str, str], hot: Set[str] = frozenset()) -> Iterator[Setting]:
    """Every setting there is, in the order of atlas.toml."""
    about = comments()
    for section, name, value, default in flat(current, Settings()):
        dotted = f"{section}.{name}" if section else name
        source = sources.get(dotted, "default" if value == default else "set")
        yield Setting(section, name, display(name, value), display(name, default), source, dotted in hot, about.get(dotted, ""))


def flat(current: Settings, default: Settings) -> Iterator[tuple[str, str, Any, Any]]:
    """(section, name, value, default) of every setting; the section is empty at the top."""
    for field in msgspec.structs.fields(Settings):
        here, usual = getattr(current, field.name), getattr(default, field.name)
        if not isinstance(here, Section):
            yield "", field.name, here, usual
            continue
        for inner in msgspec.structs.fields(type(here)):
            yield field.name, inner.name, getattr(here, inner.name), getattr(usual, inner.name)


@cache
def comments() -> dict[str, str]:
    """What atlas.toml says of each setting, by "section.name"."""
    found, section = {}, ""
    for line in packaged("atlas.toml").read_text(encoding="utf-8").splitlines():
        if table := re.match(r"\[(\w+)\]", line):
            section = table[1] + "."
        elif setting := re.match(r"(\w+) = .*?# (.*)", line):
            found[section + setting[1]] = setting[2]
    return found


def display(name: str, value: Any) -> str:
    """As it would stand in atlas.toml, without what must not be seen."""
    if isinstance(value, str) and value:
        return MASK if name.endswith(SECRET_ENDINGS) else without_password(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(str(item) for item in value) + "]"
    if value == "":
        return '""'
    return msgspec.json.encode(value).decode()


def without_password(text: str) -> str:
    """The text; of an address, the password between user and host is masked, and so are the values of its query."""
    scheme, mark, rest = text.partition("://")
    if not mark:
        return text
    authority, slash, path = rest.partition("/")
    login, at, host = authority.rpartition("@")
    user, colon, _ = login.partition(":")
    place, question, query = f"{host}{slash}{path}".partition("?")
    masked = "&".join(f"{pair.partition('=')[0]}={MASK}" for pair in query.split("&") if pair)
    return f"{scheme}://{user}{colon}{MASK if colon else ''}{at}{place}{question}{masked}"
