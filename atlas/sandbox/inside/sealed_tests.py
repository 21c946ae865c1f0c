"""Runs pytest in the tests' box. The candidate is elsewhere, so that nothing it does can reach what decides."""

from __future__ import annotations

from typing import Any

from atlas.sandbox.inside import proxies, pytest_sessions
from atlas.sandbox.inside.frames import Channel

warm = pytest_sessions.warm


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """Frames: what was collected, each phase of each test, `end`."""
    assert peer is not None
    link = proxies.Link(peer)
    told = link.hello()
    if told is None:
        report.send({"absent": True})
        return 0
    proxies.install(link, payload["names"], told)
    status = pytest_sessions.run("sealed", report.send, link)
    report.send({"end": status, "lost": link.lost, "is_forged": link.is_forged})
    return 0
