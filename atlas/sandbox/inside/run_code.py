"""Whole programs."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from atlas.sandbox.inside.frames import Channel


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    exec(compile(payload["code"], "main.py", "exec"), {"__name__": "__main__", "report": report, "peer": peer})
    return 0
