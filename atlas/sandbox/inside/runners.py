"""The programs a box can run, by name.

A runner is called as `runner(payload, report, peer)` in the main process of a box, after every layer of isolation stands, with
the working directory /work; what it returns is the exit code. `report` takes frames to the pool, `peer` is the other box
of a pair, if there is one. A runner imports what it needs at module level, so that the warm process has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from atlas.sandbox.inside.frames import Channel

Runner = Callable[[dict[str, Any], Channel, Channel | None], int]


def runners_of(profile: str) -> dict[str, Runner]:
    return {"run": run}


def warm(profile: str) -> None:
    """Import and use once what boxes of this profile will use."""


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    exec(compile(payload["code"], "main.py", "exec"), {"__name__": "__main__", "report": report, "peer": peer})
    return 0
