"""Sessions of pytest that are made before they are needed: in a warm process, up to the point where tests are collected.

That is two thirds of a small session. It goes beyond pytest's public interface; where that has changed, or a session of
another kind is wanted, one is made in the box by `pytest.main`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Generator
from typing import Any

import pytest

from atlas.sandbox.inside import faults, lineage, proxies, view

FILE = "test_solution.py"
ENVIRONMENT = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "NO_COLOR": "1"}
# An existing directory both here and in a box, above no test, so that none of a box's directories is searched for conftest.py.
ROOT = "/tmp"
INTERRUPTED, INTERNAL_ERROR, USAGE_ERROR = 2, 3, 4
_OPTIONS = ("-c", "/dev/null", "-p", "no:cacheprovider", "-q", "--no-header", "--no-summary", "--tb=short", "--capture=sys")
_NEVER_NEEDED = (
    "doctest",
    "faulthandler",
    "junitxml",
    "pastebin",
    "pytester_assertions",
    "python_path",
    "setuponly",
    "setupplan",
)
_NOT_SEALED = ("legacypath", "logging", "monkeypatch", "recwarn", "threadexception", "tmpdir", "unraisableexception")
WITHOUT = {"sealed": (*_NEVER_NEEDED, *_NOT_SEALED), "plain": _NEVER_NEEDED}
_WARM_UP = """
import pytest

@pytest.fixture
def one():
    return 1

@pytest.mark.parametrize("value", [1, 2])
def test_warm(value, one, capsys):
    with pytest.raises(ValueError):
        int("x")
    assert one == 1

def test_fails():
    assert [1, 2] == [1, 3]
"""
_ready: dict[str, Ready] = {}


class Ready:
    """A session that has started and waits for its tests. Used once: a box is a copy of the process that made it."""

    def __init__(self, kind: str) -> None:
        from _pytest.config import _prepareconfig
        from _pytest.main import Session

        self.recorder = Recorder()
        path = os.path.join(view.TESTS, FILE)
        self._config = _prepareconfig(_arguments(kind, ROOT, ["--noconftest", path]), [self.recorder])
        self._session = Session.from_config(self._config)
        self._config._do_configure()  # noqa: SLF001
        self._config.hook.pytest_sessionstart(session=self._session)

    def run(self) -> int:
        """Collect and run, as `pytest.main` does from here on; pytest's exit status."""
        hook, session = self._config.hook, self._session
        self._start_clock()
        try:
            hook.pytest_collection(session=session)
            hook.pytest_runtestloop(session=session)
            status = pytest.ExitCode.TESTS_FAILED if session.testsfailed else pytest.ExitCode.OK
        except (KeyboardInterrupt, pytest.exit.Exception):
            status = pytest.ExitCode.INTERRUPTED
        except session.Failed:
            status = pytest.ExitCode.TESTS_FAILED
        except BaseException:
            self._config.notify_exception(pytest.ExceptionInfo.from_current(), self._config.option)
            status = pytest.ExitCode.INTERNAL_ERROR
        session.exitstatus = status
        with contextlib.suppress(pytest.exit.Exception):
            hook.pytest_sessionfinish(session=session, exitstatus=status)
        return int(status)

    def _start_clock(self) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        with contextlib.suppress(AttributeError):  # only for the line that says how long it took
            reporter._session_start = type(reporter._session_start)()  # type: ignore[union-attr]  # noqa: SLF001


def warm() -> None:
    """Use pytest once, and make a session of each kind ready."""
    os.environ.update(ENVIRONMENT)
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as directory:
        with open(os.path.join(directory, FILE), "w", encoding="utf-8") as file:
            file.write(_WARM_UP)
        with contextlib.redirect_stdout(io.StringIO()):
            pytest.main([*_arguments("plain", directory, ["--noconftest"]), os.path.join(directory, FILE)], [Recorder()])
    sys.modules.pop("test_solution", None)
    sys.path[:] = [entry for entry in sys.path if entry != directory]
    for kind in WITHOUT:
        with contextlib.suppress(AttributeError, ImportError, TypeError):  # another pytest; each box makes its own then
            _ready[kind] = Ready(kind)


def run(kind: str, send: Callable[[dict[str, Any]], None], link: proxies.Link | None, *, has_conftest: bool = False) -> int:
    """Run the test file in TESTS; pytest's exit status."""
    os.environ.update(ENVIRONMENT)
    sys.dont_write_bytecode = True
    if (ready := _ready.get(kind)) and not has_conftest:
        ready.recorder.bind(send, link)
        return ready.run()
    recorder = Recorder()
    recorder.bind(send, link)
    conftest = f"--confcutdir={view.TESTS}" if has_conftest else "--noconftest"
    return int(pytest.main(_arguments(kind, view.TESTS, [conftest, os.path.join(view.TESTS, FILE)]), [recorder]))


def _arguments(kind: str, root: str, further: list[str]) -> list[str]:
    return [*_OPTIONS, *(part for name in WITHOUT[kind] for part in ("-p", f"no:{name}")), f"--rootdir={root}", *further]


class Recorder:
    """A plugin that reports as pytest goes."""

    def __init__(self) -> None:
        self._send: Callable[[dict[str, Any]], None] = lambda frame: None
        self._link: proxies.Link | None = None
        self._num_violations = 0

    def bind(self, send: Callable[[dict[str, Any]], None], link: proxies.Link | None) -> None:
        self._send, self._link = send, link

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._send({"collected": [_name(item.nodeid) for item in session.items]})

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if report.failed and (call := getattr(report, "call", None)) and call.excinfo:
            error = call.excinfo.value.__cause__ or call.excinfo.value
            self._send({"broken": report.longreprtext[-faults.TRACE_LIMIT :], "fault": faults.describe(error)})
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self._note_violations(report)
        frame: dict[str, Any] = {"test": _name(report.nodeid), "when": report.when, "outcome": self._outcome(report)}
        if report.outcome != "passed":
            frame["text"] = self._text(report, call)
            frame["type"] = call.excinfo.typename if call.excinfo else ""
        if report.when == "call":
            frame["seconds"] = report.duration
        self._send(frame)
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


def _name(nodeid: str) -> str:
    """Without the way from the root to the test file, which there is only one of."""
    _, colons, name = nodeid.partition("::")
    return f"{FILE}{colons}{name}"
