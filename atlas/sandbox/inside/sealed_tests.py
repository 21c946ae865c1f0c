"""Runs pytest in the tests' box. The candidate is elsewhere, so that nothing it does can reach what decides."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Generator
from typing import Any

import pytest

from atlas.sandbox.inside import faults, lineage, proxies, view
from atlas.sandbox.inside.frames import Channel

FILE = "test_solution.py"
ARGUMENTS = ("-c", "/dev/null", "-p", "no:cacheprovider", "-q", "--no-header", "--no-summary", "--tb=short", "--capture=sys")
NO_COLOURS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "NO_COLOR": "1"}
_WARM_UP = """
import pytest

@pytest.mark.parametrize("value", [1, 2])
def test_warm(value, tmp_path, capsys):
    with pytest.raises(ValueError):
        int("x")
    assert value == 1
"""


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """Frames: what was collected, each phase of each test, `end`."""
    assert peer is not None
    link = proxies.Link(peer)
    told = link.hello()
    if told is None:
        report.send({"absent": True})
        return 0
    proxies.install(link, payload["names"], told)
    status = session(view.TESTS, Recorder(report, link), [])
    report.send({"end": status, "lost": link.lost, "is_forged": link.is_forged})
    return 0


def session(directory: str, recorder: object, arguments: list[str]) -> int:
    """One run of pytest, on the test file in a directory."""
    os.environ.update(NO_COLOURS)
    sys.dont_write_bytecode = True
    fixed = [*ARGUMENTS, f"--rootdir={directory}", *arguments]
    return int(pytest.main([*fixed, os.path.join(directory, FILE)], plugins=[recorder]))


def warm() -> None:
    """A first session, so that those in boxes find everything imported."""
    with tempfile.TemporaryDirectory() as directory, open(os.devnull, "w", encoding="utf-8") as nowhere:
        with open(os.path.join(directory, FILE), "w", encoding="utf-8") as file:
            file.write(_WARM_UP)
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            session(directory, Recorder(Channel(-1, os.open(os.devnull, os.O_WRONLY)), None), ["--noconftest"])
    sys.modules.pop("test_solution", None)
    sys.path[:] = [entry for entry in sys.path if entry != directory]


class Recorder:
    """A plugin that reports as pytest goes."""

    def __init__(self, report: Channel, link: proxies.Link | None) -> None:
        self._report = report
        self._link = link
        self._num_violations = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._report.send({"collected": [item.nodeid for item in session.items]})

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if report.failed and (call := getattr(report, "call", None)) and call.excinfo:
            error = call.excinfo.value.__cause__ or call.excinfo.value
            self._report.send({"broken": report.longreprtext[-faults.TRACE_LIMIT :], "fault": faults.describe(error)})
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self._note_violations(report)
        frame: dict[str, Any] = {"test": report.nodeid, "when": report.when, "outcome": self._outcome(report)}
        if report.outcome != "passed":
            frame["text"] = self._text(report, call)
            frame["type"] = call.excinfo.typename if call.excinfo else ""
        if report.when == "call":
            frame["seconds"] = report.duration
        self._report.send(frame)
        return report

    def _note_violations(self, report: pytest.TestReport) -> None:
        """A test that caught what it should not have caught has failed all the same."""
        if self._link is None or len(self._link.violations) == self._num_violations:
            return
        message = self._link.violations[self._num_violations]
        self._num_violations = len(self._link.violations)
        if report.outcome != "failed":
            report.outcome, report.longrepr = "failed", message

    @staticmethod
    def _outcome(report: pytest.TestReport) -> str:
        return "xpassed" if hasattr(report, "wasxfail") and report.outcome == "passed" else report.outcome

    @staticmethod
    def _text(report: pytest.TestReport, call: pytest.CallInfo[None]) -> str:
        trace = getattr(call.excinfo.value, lineage.OWN_TRACE, "") if call.excinfo else ""
        text = report.longreprtext[-faults.TRACE_LIMIT :]
        return f"{text}\n\nin the code:\n{trace}" if trace else text
