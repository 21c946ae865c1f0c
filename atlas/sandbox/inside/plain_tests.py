"""Tests that have to be in one process with the code: pytest, or a checker. See tampering.py for what that is worth."""

from __future__ import annotations

import json
import json.encoder
import os
import posix
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from atlas.sandbox.inside import checker, faults, loading, tampering, view
from atlas.sandbox.inside.frames import HEADER_BYTES, Channel

Send = Callable[[dict[str, Any]], None]

_guards: dict[str, tampering.Guard] = {}


def warm() -> None:
    """What decides is remembered before any code of a candidate runs."""
    _guards["all"] = tampering.Guard()


def run_pytest(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """Frames as sealed_tests.py has them, each with the nonce; the last with signs of tampering."""
    from atlas.sandbox.inside import pytest_sessions  # pytest is in processes of its own profile only

    def session(send: Send, guard: tampering.Guard) -> int:
        return pytest_sessions.run("plain", send, on_collected=guard.add, options=options)

    options = _options(payload)
    return _run(_sender(report, payload.pop("nonce")), session)


def _options(payload: dict[str, Any]) -> list[str]:
    """What a session needs beyond the usual; none if it needs nothing."""
    asynchronous = (
        ["-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=auto"] if payload["is_async"] and find_spec("pytest_asyncio") else []
    )
    if payload["has_conftest"]:
        return [f"--confcutdir={view.TESTS}", *asynchronous]
    return ["--noconftest", *asynchronous] if asynchronous else []


def run_checker(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """Frames as checker.py has them, each with the nonce; the last with signs of tampering."""

    def session(send: Send, guard: tampering.Guard) -> int:
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
    """Writes frames by what only C can do, held here and nowhere else: replacing a module's functions does not reach it."""
    text_of = json.encoder.encode_basestring_ascii
    encode = json.encoder.c_make_encoder(None, None, text_of, None, ":", ",", False, False, True)  # type: ignore[attr-defined]
    descriptor, write = report._sending, posix.write  # noqa: SLF001

    def send(frame: dict[str, Any]) -> None:
        body = "".join(encode(frame | {"nonce": nonce}, 0)).encode()
        text = len(body).to_bytes(HEADER_BYTES, "big") + body
        while text:
            text = text[write(descriptor, text) :]

    return send


def _run(send: Send, session: Callable[[Send, tampering.Guard], int]) -> int:
    guard = _guards.pop("all", None) or tampering.Guard()
    changed = guard.changed
    sys.path.insert(0, view.TESTS)
    with open(os.path.join(view.HOME, loading.FILE), encoding="utf-8", errors="replace") as file:
        signs = list(tampering.suspicious(file.read()))
    watch = tampering.Watch(view.HOME, view.TESTS)
    watch.start()
    if loading.load(send) is None:
        return 0
    try:
        status = session(send, guard)
    except BaseException as error:  # what a session lets through, the code threw
        send({"broken": faults.trace_of(error), "fault": faults.describe(error)})
        status = 1
    send({"end": status, "tampering": [*signs, *watch.signs(), *changed()][: tampering.SIGNS_LIMIT]})
    return 0
