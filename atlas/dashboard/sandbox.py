"""Sandbox: how code that nobody trusts is isolated here, how the pool is, and what runs have shown; never a line of code."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, get_args

from litestar import Response, get
from markupsafe import Markup

from atlas.dashboard.status import show
from atlas.dashboard.view import HTTPRequest, View, fragment, view_of
from atlas.errors import AtlasError
from atlas.types import Outcome, SandboxStatus

PATIENCE_S = 1.0  # a pool that tries out its tiers answers later; chosen
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
PROVED = ("passed", "completed")
TIERS = {
    "native": "Each run in namespaces of its own, behind seccomp and Landlock.",
    "bwrap": "Each run in a bubblewrap container, behind seccomp.",
    "landlock": "Each run behind Landlock and limits alone: weaker than the tiers above it.",
    "none": "Code is not isolated. It can do everything that this server can.",
}


class Share(NamedTuple):
    """How many runs ended in one way; `share` is of all."""

    outcome: str
    num_runs: int
    share: float
    is_good: bool


@get("/sandbox", opt={"access": "page"})
async def sandbox(request: HTTPRequest) -> Response[str]:
    view = view_of(request)
    return await show(view, "sandbox.html", panels=await panels(view))


async def panels(view: View) -> dict[str, Markup]:
    status, trouble = await look(view)
    return {
        "tier": fragment(view, "parts/tier.html", status=status, trouble=trouble, tiers=TIERS),
        "pool": fragment(view, "parts/pool.html", status=status) if status and status.tier else Markup(""),
        "runs": fragment(view, "parts/runs.html", status=status, shares=shares(status), curl=curl(view))
        if status
        else Markup(""),
    }


def curl(view: View) -> str:
    """A request that somebody can paste into a terminal."""
    tests = "from solution import add\\ndef test_add(): assert add(1, 2) == 3"
    body = f'{{"code": "def add(a, b): return a + b", "test_code": "{tests}"}}'
    return (
        f"curl {view.base_url}/v1/sandbox/execute -H 'Authorization: Bearer YOUR_KEY' \\\n"
        f"  -H 'Content-Type: application/json' -d '{body}'"
    )


async def look(view: View) -> tuple[SandboxStatus | None, str]:
    """The pool as it is; None, and why, if it does not answer."""
    if view.deps.sandbox is None:
        return None, "This server has no sandbox."
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await view.deps.sandbox.status(), ""
    except TimeoutError:
        return None, "It is being tried out which isolation this machine gives; that takes a few seconds."
    except AtlasError as error:
        return None, error.message


def shares(status: SandboxStatus) -> list[Share]:
    """Every outcome that there was, in the order of the type."""
    total = sum(status.outcomes.values())
    counts = [(outcome, status.outcomes.get(outcome, 0)) for outcome in OUTCOMES]
    return [Share(outcome, count, count / total, outcome in PROVED) for outcome, count in counts if count]
