"""Calls an entry point on each case and reports values; what was expected is not here."""

from __future__ import annotations

import sys
import time

from atlas.sandbox.inside import faults, loading, values
from atlas.sandbox.inside.frames import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:  # see frames.py
    from types import ModuleType
    from typing import Any

OFTEN_USED = "collections", "datetime", "decimal", "fractions", "traceback", "typing"
NAME = "function"  # in runners.py
NO_KEYWORDS = values.encode({})  # of nearly every case
SAMPLE = b"def add(a, b):\n    return a + b\n"


def warm() -> None:
    """Import what many candidates use, and use what failures are told with, so that no box has to be the first."""
    for name in OFTEN_USED:
        __import__(name)
    module = loading.new_module(loading.NAME, loading.FILE)
    exec(compile(SAMPLE, loading.FILE, "exec", dont_inherit=True), module.__dict__)
    _call(module, loading.find_entry(module, "add"), values.encode([1, "x"]), values.encode({}))
    del sys.modules[loading.NAME]


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """One frame for the module, one for each case as it ends, and `end`."""
    module = loading.load(report.send)
    if module is None:
        return 0
    try:
        owner, name = loading.find_entry(module, payload["entry"])
    except loading.Missing as error:
        report.send({"missing": str(error)})
        return 0
    for number, (args, kwargs) in enumerate(payload["cases"]):
        _send(report, _call(module, (owner, name), args, kwargs) | {"case": number})
    report.send({"end": len(payload["cases"])})
    return 0


def _call(module: ModuleType, entry: tuple[str, str], args: values.Encoded, kwargs: values.Encoded) -> dict[str, Any]:
    positional, keywords = values.decode(args), {} if kwargs == NO_KEYWORDS else values.decode(kwargs)
    started_s = time.perf_counter()
    try:
        returned = loading.bind(module, *entry)(*positional, **keywords)
        seconds = time.perf_counter() - started_s
        return {"value": values.encode(returned), "seconds": seconds}
    except values.NotPlain as error:
        return {"strange": str(error)[: faults.TEXT_LIMIT]}
    except BaseException as error:  # sys.exit in a call as well
        return {"fault": faults.describe(error, trace=True), "seconds": time.perf_counter() - started_s}


def _send(report: Channel, frame: dict[str, Any]) -> None:
    try:
        report.send(frame)
    except (ValueError, MemoryError):
        report.send({"case": frame["case"], "strange": "a value larger than a frame holds"})
