"""Runs a checker in the tests' box: assert statements, or a function `check(candidate)`."""

from __future__ import annotations

import ast
import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from atlas.sandbox.inside import faults, lineage, loading, proxies, view
from atlas.sandbox.inside.frames import Channel

FILE = "checker.py"
NAME_LIMIT = 200
SHOWN_CHARS = 1000
_EXPLAIN = "_explain_"
_LEFT, _RIGHT = "_left_", "_right_"


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """Frames: each test as it ends, `end`."""
    assert peer is not None
    link = proxies.Link(peer)
    told = link.hello()
    if told is None:
        report.send({"absent": True})
        return 0
    solution = proxies.install(link, payload["names"], told)
    entry = entry_names(payload, proxies.RemoteFunction(link, ["entry", ""]))
    Checker(report.send, link, entry | module_names(solution)).check(payload)
    report.send({"end": 0, "lost": link.lost, "is_forged": link.is_forged})
    return 0


def entry_names(payload: dict[str, Any], entry: Any) -> dict[str, Any]:
    """What a checker may call the entry point."""
    return {name: entry for name in ("candidate", payload["entry"]) if name.isidentifier()}


class Checker:
    """Executes a checker on a namespace."""

    def __init__(self, send: Callable[[dict[str, Any]], None], link: proxies.Link | None, names: dict[str, Any]) -> None:
        self._send = send
        self._link = link
        self._path = os.path.join(view.TESTS, FILE)
        self._module = loading.new_module("checker", self._path)
        self._names = names

    def check(self, payload: dict[str, Any]) -> None:
        """Statements one by one, then `check` if that is what it is."""
        with open(self._path, encoding="utf-8") as file:
            source = file.read()
        try:
            tree = ast.parse(source, self._path)
        except (SyntaxError, ValueError) as error:
            self._send({"broken": faults.trace_of(error), "fault": faults.describe(error)})
            return
        self._module.__dict__.update(self._names, **{_EXPLAIN: explain})
        tree.body = [statement for statement in tree.body if not _is_stub(statement, payload["entry"])]
        tree = ast.fix_missing_locations(Explaining(source).visit(tree))
        for statement in tree.body:
            is_test = _asserts(statement)
            if not self._run(statement, ast.get_source_segment(source, statement) or "", is_test=is_test) and not is_test:
                return  # what follows cannot be judged
        if payload["has_check"]:
            self._perform("check(candidate)", lambda: self._module.__dict__["check"](self._names["candidate"]))

    def _run(self, statement: ast.stmt, source: str, *, is_test: bool) -> bool:
        code = compile(ast.Module([statement], []), self._path, "exec", dont_inherit=True)
        return self._perform(source[:NAME_LIMIT], lambda: exec(code, self._module.__dict__), is_silent=not is_test)

    def _perform(self, name: str, action: Any, *, is_silent: bool = False) -> bool:
        """Whether it passed; a silent one is reported only if it did not."""
        started_s = time.perf_counter()
        num_violations = len(self._link.violations) if self._link else 0
        frame: dict[str, Any] = {"test": name, "when": "call", "outcome": "passed"}
        try:
            action()
        except BaseException as error:  # sys.exit as well
            frame |= {"outcome": "failed", **_reason(error)}
        if self._link and len(self._link.violations) > num_violations:
            frame |= {"outcome": "failed", "text": self._link.violations[num_violations], "type": "Violation"}
        frame["seconds"] = time.perf_counter() - started_s
        if not is_silent or frame["outcome"] != "passed":
            self._send(frame)
        return bool(frame["outcome"] == "passed")


def _is_stub(statement: ast.stmt, entry: str) -> bool:
    """The entry point, as a prompt put before the checker has it; it is the candidate's."""
    return isinstance(statement, ast.FunctionDef) and statement.name == entry


def _asserts(statement: ast.stmt) -> bool:
    is_definition = isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    return not is_definition and any(isinstance(node, ast.Assert) for node in ast.walk(statement))


def _reason(error: BaseException) -> dict[str, Any]:
    trace = getattr(error, lineage.OWN_TRACE, "")
    text = faults.trace_of(error)
    return {"text": f"{text}\n\nin the code:\n{trace}" if trace else text, "type": type(error).__name__}


class Explaining(ast.NodeTransformer):
    """Gives each `assert left == right` a message with both values."""

    def __init__(self, source: str) -> None:
        self._source = source

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        test = node.test
        if node.msg is None and isinstance(test, ast.Compare) and len(test.ops) == 1:
            text = ast.get_source_segment(self._source, test) or ""
            left, right = _store(_LEFT, test.left), _store(_RIGHT, test.comparators[0])
            node.test = ast.Compare(left, test.ops, [right])
            loads: list[ast.expr] = [ast.Name(name, ast.Load()) for name in (_LEFT, _RIGHT)]
            node.msg = ast.Call(ast.Name(_EXPLAIN, ast.Load()), [ast.Constant(text[:NAME_LIMIT]), *loads], [])
        return node


def _store(name: str, value: ast.expr) -> ast.NamedExpr:
    return ast.NamedExpr(ast.Name(name, ast.Store()), value)


def explain(text: str, left: Any, right: Any) -> str:
    return f"{text}: {_shown(left)} and {_shown(right)}"


def _shown(value: Any) -> str:
    try:
        return repr(value)[:SHOWN_CHARS]
    except Exception as error:  # int too long for text, and the like
        return f"<{type(value).__name__}: {error}>"


def module_names(module: ModuleType) -> dict[str, Any]:
    """What a checker sees of a candidate in its own process."""
    return {name: value for name, value in vars(module).items() if not name.startswith("__")}
