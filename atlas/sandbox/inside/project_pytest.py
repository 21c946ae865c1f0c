"""pytest under a project's own interpreter, with a reporter of ours.

    python project_pytest.py SECRET_FD,REPORT_FD MODE PROJECT PATH ARGUMENTS...

MODE is `module` where `python -m pytest` is meant, which puts the working directory on the path, else `script`. PATH is what
PYTHONPATH is to be; nothing in it is imported before the guard stands. Every word on
REPORT_FD carries the secret that is read from SECRET_FD before anything of the project is imported. Code that runs beside the
tests could still find it out: a verdict from here is never called sealed.

Runs on every Python that pytest 7 or later runs on; standard library only.
"""

from __future__ import annotations

import sys

del sys.path[0]  # this directory, whose names are nobody's business

import builtins  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
from types import FunctionType, ModuleType  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

SECRET_BYTES = 32
MESSAGE_CHARS = 4000
MESSAGES_CHARS = 1_000_000  # of all messages together
IDS_PER_FRAME = 500
NAMES_SHOWN = 50
USAGE_ERROR = 4
GUARDED = ("_pytest", "pluggy", "pytest", "unittest.case")
ALWAYS = ("--continue-on-collection-errors", "--maxfail=0")  # what stops early says nothing of the rest
LISTENED = frozenset({"gc.get_objects", "gc.get_referrers", "sys.settrace", "sys.setprofile", "sys._current_frames"})


def make_sender(secret_fd: int, report_fd: int) -> Callable[[dict[str, Any]], None]:
    """A function that sends words with the secret, from this process only."""
    secret = os.read(secret_fd, SECRET_BYTES).decode()
    os.close(secret_fd)
    os.set_inheritable(report_fd, False)
    owner, getpid, write, dumps = os.getpid(), os.getpid, os.write, json.dumps

    def send(word: dict[str, Any]) -> None:
        if getpid() != owner:
            return
        body = dumps([secret, word]).encode()
        rest = len(body).to_bytes(4, "big") + body
        while rest:
            rest = rest[write(report_fd, rest) :]

    return send


class Reporter:
    """A pytest plugin: what was selected, each test's result when it is over, and errors of collection."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._reports: dict[str, list[Any]] = {}
        self._message_chars = MESSAGES_CHARS
        self.plugins: list[str] = []
        self.helpers: list[str] = []  # files of plugins that a conftest, a setting or the command named
        self.is_registered = False

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._send({"uncollected": report.nodeid, "message": self._text(report)})

    def pytest_collection_finish(self, session: Any) -> None:
        ids = [item.nodeid for item in getattr(session, "items", ())]
        for start in range(0, len(ids), IDS_PER_FRAME):
            self._send({"selected": ids[start : start + IDS_PER_FRAME]})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._send({"started": nodeid})

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome == "rerun":
            self._reports.pop(report.nodeid, None)
            return
        self._reports.setdefault(report.nodeid, []).append(report)
        if report.when == "teardown":
            self._finish(report.nodeid)

    def pytest_sessionfinish(self, session: Any) -> None:
        for nodeid in list(self._reports):
            self._finish(nodeid)
        manager = session.config.pluginmanager
        self.is_registered = manager.is_registered(self)
        named = [plugin for _, plugin in manager.list_name_plugin() if plugin is not None]
        self.plugins = sorted(set(map(_describe, named)))
        installed = [plugin for plugin, _ in manager.list_plugin_distinfo()]
        own = [plugin for plugin in named if isinstance(plugin, ModuleType) and plugin not in installed]
        self.helpers = sorted(str(plugin.__file__) for plugin in own)

    def _finish(self, nodeid: str) -> None:
        reports = self._reports.pop(nodeid)
        bad = [report for report in reports if report.failed]
        word = {"test": nodeid, "outcome": _outcome(reports), "seconds": sum(report.duration for report in reports)}
        self._send({**word, "message": self._text(bad[0]) if bad else _reason(reports)})

    def _text(self, report: Any) -> str:
        text = str(report.longreprtext or "")[-min(MESSAGE_CHARS, self._message_chars) :] if self._message_chars else ""
        self._message_chars -= len(text)
        return text


def _outcome(reports: list[Any]) -> str:
    """Passed is a test whose preparation, call and clean-up all passed."""
    if any(report.failed for report in reports):
        return "failed" if any(report.failed and report.when == "call" for report in reports) else "error"
    if any(report.skipped for report in reports):
        return "skipped"
    phases = {report.when for report in reports if report.passed}
    return "passed" if {"setup", "call", "teardown"} <= phases else "error"


def _reason(reports: list[Any]) -> str:
    """Why a test was skipped."""
    skipped = [report.longrepr for report in reports if report.skipped]
    if not skipped:
        return ""
    return str(skipped[0][2] if isinstance(skipped[0], tuple) else "expected to fail")[:MESSAGE_CHARS]


def _describe(plugin: Any) -> str:
    """The same in every run: its name, and the file it comes from."""
    module = plugin if isinstance(plugin, ModuleType) else sys.modules.get(type(plugin).__module__)
    name = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__qualname__
    return f"{name} ({getattr(module, '__file__', None) or 'without a file'})"


class Guard:
    """The functions that run tests and judge them, as they were before any code of the project ran."""

    def __init__(self) -> None:
        self._before = {place: (found, _code(found)) for place, found in _functions()}
        self._builtins = dict(vars(builtins))

    def patched(self) -> list[str]:
        now = dict(_functions())
        changed = [
            place for place, (found, code) in self._before.items() if now.get(place) is not found or _code(found) is not code
        ]
        others = (name for name, value in self._builtins.items() if name != "_" and vars(builtins).get(name) is not value)
        return sorted([*changed, *(f"builtins.{name}" for name in others)])


def _functions() -> Iterator[tuple[str, Any]]:
    for name, module in list(sys.modules.items()):
        if not name.startswith(GUARDED) or not isinstance(module, ModuleType):
            continue
        for attribute, value in list(vars(module).items()):
            if isinstance(value, FunctionType):
                yield f"{name}.{attribute}", value
            elif isinstance(value, type) and value.__module__ == name:
                yield from ((f"{name}.{attribute}.{key}", member) for key, member in list(vars(value).items()) if _code(member))


def _code(member: Any) -> Any:
    if isinstance(member, property):
        member = member.fget
    return getattr(getattr(member, "__func__", member), "__code__", None)


def listen(project: str) -> set[str]:
    """What code of the project asks the interpreter for that tests have no need of; filled as it happens."""
    heard: set[str] = set()
    inside = project.rstrip(os.sep) + os.sep
    getframe = sys._getframe  # noqa: SLF001 - who asked

    def hear(event: str, _: tuple[Any, ...]) -> None:
        if event in LISTENED:
            file = getframe(1).f_code.co_filename
            if file.startswith(inside):
                heard.add(f"{file[len(inside) :]} called {event}")

    sys.addaudithook(hear)
    return heard


def _extend_path(mode: str, path: str) -> None:
    """As the interpreter would have done it at its start."""
    if path:
        os.environ["PYTHONPATH"] = path
        sys.path[:0] = [os.path.abspath(place) for place in path.split(os.pathsep)]
    if mode == "module":
        sys.path.insert(0, os.getcwd())


def main() -> None:
    secret_fd, report_fd = map(int, sys.argv[1].split(","))
    mode, project, path, *arguments = sys.argv[2:]
    send = make_sender(secret_fd, report_fd)
    try:
        import pytest
    except ImportError as error:
        send({"absent": str(error)})
        raise SystemExit(USAGE_ERROR) from None
    guard, reporter, heard = Guard(), Reporter(send), listen(project)
    _extend_path(mode, path)
    sys.argv = ["pytest", *arguments]
    exit_code = int(pytest.main([*arguments, *ALWAYS], plugins=[reporter]))
    send(
        {
            "finished": exit_code,
            "is_reporting": reporter.is_registered or exit_code == USAGE_ERROR,  # of which it hears nothing
            "plugins": reporter.plugins,
            "helpers": reporter.helpers,
            "signs": [f"{name} was replaced" for name in guard.patched()[:NAMES_SHOWN]] + sorted(heard)[:NAMES_SHOWN],
        }
    )
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
