"""Tests that have to be in one process with the code: pytest, or a checker. See tampering.py for what that is worth."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from atlas.sandbox.inside import checker, faults, loading, tampering, view
from atlas.sandbox.inside.frames import Channel

Send = Callable[[dict[str, Any]], None]

_guards: dict[str, tampering.Guard] = {}


def warm() -> None:
    """What decides is remembered before any code of a candidate runs."""
    _guards["all"] = tampering.Guard()


def run_pytest(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """Frames as sealed_tests.py has them, each with the nonce; the last with signs of tampering."""
    from atlas.sandbox.inside import pytest_sessions  # pytest is in processes of its own profile only

    def session(send: Send) -> int:
        return pytest_sessions.run("plain", send, None, has_conftest=payload["has_conftest"])

    return _run(_sender(report, payload.pop("nonce")), session)


def run_checker(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """Frames as checker.py has them, each with the nonce; the last with signs of tampering."""

    def session(send: Send) -> int:
        solution = sys.modules[loading.NAME]
        try:
            entry = loading.bind(solution, *loading.find_entry(solution, payload["entry"]))
        except loading.Missing as error:
            send({"broken": str(error), "fault": {"type": "NoEntryPoint", "message": str(error)}})
            return 0
        names = checker.entry_names(payload, entry) | ({} if payload["has_check"] else checker.module_names(solution))
        checker.Checker(send, None, names).check(payload)
        return 0

    return _run(_sender(report, payload.pop("nonce")), session)


def _sender(report: Channel, nonce: str) -> Send:
    return lambda frame: report.send(frame | {"nonce": nonce})


def _run(send: Send, session: Callable[[Send], int]) -> int:
    guard = _guards.get("all") or tampering.Guard()
    sys.path.insert(0, view.TESTS)
    with open(os.path.join(view.HOME, loading.FILE), encoding="utf-8", errors="replace") as file:
        signs = list(tampering.suspicious(file.read()))
    watch = tampering.Watch(view.HOME, view.TESTS)
    watch.start()
    if loading.load(send) is None:
        return 0
    try:
        status = session(send)
    except BaseException as error:  # what a session lets through, the code threw
        send({"broken": faults.trace_of(error), "fault": faults.describe(error)})
        status = 1
    send({"end": status, "tampering": [*signs, *watch.signs(), *guard.changed()][: tampering.SIGNS_LIMIT]})
    return 0
