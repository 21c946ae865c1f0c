"""Lints the candidate with pylint, and with ruff where the interpreter has it beside it. No configuration file is read."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from atlas.sandbox.inside import faults, loading
from atlas.sandbox.inside.frames import Channel

try:
    from pylint.lint import Run
    from pylint.reporters import CollectingReporter
except ImportError:  # the sandbox may use an interpreter of the user's
    Run = None  # type: ignore[assignment,misc]

MESSAGES_LIMIT = 500
OPTIONS = ("--rcfile=/dev/null", "--persistent=n", "--jobs=1", "--score=y", "--reports=n")
RUFF = ("check", "--isolated", "--no-cache", "--exit-zero", "--output-format=json")
RUFF_TIMEOUT_S = 60
_WARM_UP = '"""Text."""\nimport os\n\n\ndef add(left, right):\n    """Text."""\n    return left + rihgt\n'


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """One frame: `missing` if there is no pylint, `compile` if the code is no Python, else `score` and `messages`."""
    if Run is None:
        report.send({"missing": sys.executable})
        return 0
    path = os.path.join(os.getcwd(), loading.FILE)
    try:
        loading.compile_file(path)
    except BaseException as error:  # whatever the compiler makes of it
        report.send({"compile": faults.describe(error, trace=True)})
        return 0
    score, messages = _pylint(path)
    report.send({"score": score, "messages": [*messages, *_ruff(path)][:MESSAGES_LIMIT]})
    return 0


def warm() -> None:
    """Lint once, so that pylint has read what it reads of the standard library."""
    if Run is not None:
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, loading.FILE)
            with open(path, "w", encoding="utf-8") as file:
                file.write(_WARM_UP)
            _pylint(path)


def _pylint(path: str) -> tuple[float, list[str]]:
    reporter = CollectingReporter()
    reporter.out = io.StringIO()
    done = Run([*OPTIONS, path], reporter=reporter, exit=False)
    found = [
        f"{loading.FILE}:{message.line}:{message.column}: {message.msg_id}: {message.msg} ({message.symbol})"
        for message in reporter.messages
    ]
    return float(done.linter.stats.global_note), found


def _ruff(path: str) -> list[str]:
    ruff = os.path.join(os.path.dirname(sys.executable), "ruff")
    if not os.path.exists(ruff):
        return []
    try:
        done = subprocess.run(  # noqa: S603 - beside our interpreter, on a file we wrote
            [ruff, *RUFF, path], stdin=subprocess.DEVNULL, capture_output=True, timeout=RUFF_TIMEOUT_S, check=False
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return []
    return [
        f"{loading.FILE}:{entry['location']['row']}:{entry['location']['column']}: {entry['code']}: {entry['message']} (ruff)"
        for entry in found
    ]
