"""Every route of the application, the dashboard's included, times everybody who may knock: statuses as policy.toml says.

A route that is missing from policy.toml fails, and so does a row without a route. The policy is written by hand: it is what we
want, not what the code does.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from atlas.dashboard import DashboardDeps, create_routes
from atlas.engine import ModelRegistry, ScriptedEngine
from atlas.gateway import GatewayDeps, check_readiness, create_app
from atlas.gateway.policy import handlers_of
from atlas.log import RECENT
from atlas.settings import Settings
from atlas.store import KeptResponses
from tests.gateway.callers import Callers
from tests.gateway.conftest import MODEL, deps_of, new_store, serving
from tests.gateway.metered import redis
from tests.gateway.people import settle
from tests.gateway.tasking import new_journal, opened
from tests.store.live.conftest import Server

__all__ = ["redis"]  # a fixture

POLICY: dict[str, Any] = tomllib.loads(Path(__file__).with_name("policy.toml").read_text())
CALLERS: list[str] = POLICY["callers"]
ROWS: dict[str, list[int]] = POLICY["routes"] | {
    f"{method} {path}": row for path, row in POLICY["refused"].items() for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
}
SIGN_IN = 303  # sent to the sign-in page by the gate; redirects elsewhere are successes


def pages(deps: GatewayDeps) -> Any:
    """The dashboard's routes over the same store."""
    return create_routes(
        DashboardDeps(
            store=deps.store,
            live=None,
            traffic=deps.traffic,
            journal=deps.journal,
            engine=deps.engine,
            registry=ModelRegistry(Path("/nonexistent")),
            readiness=lambda: check_readiness(deps),
            settings=Settings,
            logs=RECENT,
            draining=deps.draining,
        )
    )


@pytest.fixture(scope="module")
def callers(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    folder = tmp_path_factory.mktemp("policy") / "data"
    store = new_store(folder)
    journal = new_journal(store, redis, folder)
    responses = KeptResponses(folder / "blobs/responses", keep_s=60.0, limit_bytes=10**6)
    deps = deps_of(ScriptedEngine(["Hello world!"], model=MODEL), store=store, journal=journal, responses=responses)
    with serving(deps, extra_routes=pages(deps)) as server, opened(journal, server):
        yield Callers(store, settle(store), server.url, (folder / "secrets" / "jwt").read_bytes())
    store.close()


def routes() -> set[str]:
    deps = deps_of(None)
    return {name for name, _ in handlers_of(create_app(deps, pages(deps)))}


def test_every_route_is_in_the_policy_and_nothing_else() -> None:
    assert routes() - set(ROWS) == set(), "routes without a row in policy.toml"
    assert set(ROWS) - routes() == set(), "rows of policy.toml without a route"


def test_every_row_says_something_for_every_caller() -> None:
    assert {name: len(row) for name, row in ROWS.items() if len(row) != len(CALLERS)} == {}
    assert set(POLICY["json"]) | set(POLICY["form"]) <= set(ROWS)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_each_caller_gets_what_the_policy_says(callers: Callers, name: str) -> None:
    with httpx.Client(base_url=callers.url, verify=False, timeout=60) as http:
        answered = [status(callers, http, name, caller) for caller in CALLERS]
    wrong = [
        f"{caller}: {found}, not {wanted}"
        for caller, found, wanted in zip(CALLERS, answered, ROWS[name], strict=True)
        if found != wanted
    ]
    assert not wrong, f"{name}: {'; '.join(wrong)}"


def status(callers: Callers, http: httpx.Client, name: str, caller: str) -> int:
    """What this caller is answered on this route; of a stream only the beginning is read."""
    method, _, path = name.partition(" ")
    given = POLICY["path"].get(name, {})
    url = re.sub(r"\{(\w+):\w+\}", lambda found: given.get(found[1]) or callers.thing(found[1]), path)
    body: dict[str, Any] = {"json": POLICY["json"].get(name, {})} if method != "GET" else {}
    if name in POLICY["form"]:
        body = {"data": POLICY["form"][name]}
    with http.stream(method, url, headers=callers.headers(caller), **body) as reply:
        http.cookies.clear()
        is_led_on = reply.status_code == SIGN_IN and not reply.headers["location"].startswith("/signin?next=")
        return 200 if is_led_on else reply.status_code
