"""Signs that code interfered with the tests beside it, in the one process that both are in.

What this is not: a proof. Code in the same process can do anything that we can, this module included. It catches what is known
to be tried and makes a pass out of it `tampered`; that is why such verdicts are never called sealed.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
import sysconfig
from _thread import _local
from collections.abc import Callable, Iterable, Iterator
from operator import is_
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

SIGNS_LIMIT = 20
STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
SITE_PACKAGES = sysconfig.get_paths()["purelib"]
INTROSPECTION = frozenset({"currentframe", "stack", "trace", "walk_stack", "_getframemodulename"})
FRAMES = frozenset({"tb_frame", "gi_frame", "cr_frame", "ag_frame"})
CALLABLE = (FunctionType, BuiltinFunctionType, staticmethod, classmethod, property, type)
# Modules whose functions decide, or carry the decision out of the box.
GUARDED = (
    *(f"_pytest.{name}" for name in ("assertion", "assertion.rewrite", "assertion.util", "main", "nodes", "outcomes", "python")),
    *(f"_pytest.{name}" for name in ("python_api", "raises", "reports", "runner", "skipping", "unittest")),
    *("math", "pluggy._caller", "pluggy._execution", "pluggy._manager", "pytest", "unittest.case"),
    *(f"atlas.sandbox.inside.{name}" for name in ("checker", "faults", "plain_tests", "pytest_sessions", "tampering")),
)
FORBIDDEN_IMPORTS = ("_pytest", "pluggy", "atlas", "ctypes", "_ctypes")


class Guard:
    """The functions that decide, as they were before any code of the candidate ran.

    Whether one was replaced; that its code was is seen as it happens (`Watch`), since looking at all of it would cost more than
    the tests.
    """

    def __init__(self) -> None:
        self._places: list[tuple[ModuleType | type, list[str]]] = []
        self._before: list[list[Any]] = []
        self._builtins = dict(vars(builtins))
        self._is_intact = _own_check()
        for name in GUARDED:
            if name in sys.modules:
                self._add_module(sys.modules[name])

    def add(self, modules: Iterable[ModuleType]) -> None:
        """Guard these as well, which are the tests."""
        for module in {id(module): module for module in modules}.values():
            self._add_module(module)

    def _add_module(self, module: ModuleType) -> None:
        kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
        places: list[ModuleType | type] = [module, *kinds]
        for place in places:
            if names := _function_names(place):
                members = _members(place, names)
                self._places.append((place, names))
                self._before.append(members)

    def changed(self) -> Iterator[str]:
        """Names of those that are something else now."""
        if not self._is_intact():
            yield "the guard itself was changed"
        for (place, names), before in zip(self._places, self._before, strict=True):
            try:
                now = _members(place, names)
            except KeyError:
                yield f"a part of {place.__name__} was removed"
                continue
            if not all(map(is_, now, before)):
                changed = next(name for name, left, right in zip(names, now, before, strict=True) if left is not right)
                yield f"{place.__name__}.{changed} was replaced"
        for name, value in self._builtins.items():
            if name != "_" and vars(builtins).get(name) is not value:
                yield f"builtins.{name} was replaced"


def _own_check() -> Callable[[], bool]:
    """Whether this module is what it was; what comes back needs nothing that can be replaced."""
    here = (globals(), vars(Guard), vars(Watch))
    before = [dict(place) for place in here]
    every, each, same = all, map, is_

    def is_intact() -> bool:
        return every(every(each(same, each(now.get, was), was.values())) for now, was in zip(here, before, strict=True))

    return is_intact


def _function_names(place: ModuleType | type) -> list[str]:
    return [name for name, member in vars(place).items() if isinstance(member, CALLABLE)]


def _members(place: ModuleType | type, names: list[str]) -> list[Any]:
    return list(map(vars(place).__getitem__, names))


class Watch:
    """Listens to what the interpreter reports of itself. Cannot be switched off again, by anybody."""

    def __init__(self, home: str, tests: str) -> None:
        self._home = home + os.sep
        self._tests = tests
        self._signs: list[str] = []
        self._local = _local()  # of threading, which would be imported for nothing else
        self._rules: dict[str, Callable[[tuple[Any, ...], FrameType], str]] = {
            "sys._getframe": self._on_getframe,
            "sys._current_frames": self._on_forbidden("sys._current_frames"),
            "sys._current_exceptions": self._on_forbidden("sys._current_exceptions"),
            "sys.settrace": self._on_forbidden("sys.settrace"),
            "sys.setprofile": self._on_forbidden("sys.setprofile"),
            "gc.get_objects": self._on_forbidden("gc.get_objects"),
            "gc.get_referrers": self._on_forbidden("gc.get_referrers"),
            "gc.get_referents": self._on_forbidden("gc.get_referents"),
            "object.__getattr__": self._on_getattr,
            "object.__setattr__": self._on_setattr,
            "open": self._on_open,
        }

    def start(self) -> None:
        sys.addaudithook(self._hear)

    def signs(self) -> list[str]:
        return self._signs[:SIGNS_LIMIT]

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        rule = self._rules.get(event) or (self._on_ctypes if event.startswith("ctypes.") else None)
        if rule is None or getattr(self._local, "is_busy", False):
            return
        self._local.is_busy = True
        try:
            caller = sys._getframe(1)  # noqa: SLF001 - who caused the event
            if (sign := rule(arguments, caller)) and sign not in self._signs:
                self._signs.append(sign)
        finally:
            self._local.is_busy = False

    def _is_candidate(self, frame: FrameType | None) -> bool:
        return frame is not None and frame.f_code.co_filename.startswith(self._home)

    def _is_on_behalf(self, frame: FrameType | None) -> bool:
        """Whether a frame is the candidate's, or the standard library's, called by it."""
        while frame is not None and _is_standard(frame.f_code):
            frame = frame.f_back
        return self._is_candidate(frame)

    def _on_getframe(self, arguments: tuple[Any, ...], caller: FrameType) -> str:
        is_asked = caller.f_code.co_name in INTROSPECTION and self._is_candidate(caller.f_back)
        return "the code looked at frames" if is_asked or self._is_candidate(caller) else ""

    def _on_getattr(self, arguments: tuple[Any, ...], caller: FrameType) -> str:
        return f"the code looked at {arguments[1]}" if arguments[1] in FRAMES and self._is_candidate(caller) else ""

    def _on_setattr(self, arguments: tuple[Any, ...], caller: FrameType) -> str:
        is_foreign = getattr(arguments[0], "__module__", "") != "solution"
        return f"the code set {arguments[1]}" if is_foreign and self._is_on_behalf(caller) else ""

    def _on_open(self, arguments: tuple[Any, ...], caller: FrameType) -> str:
        path = os.fspath(arguments[0]) if isinstance(arguments[0], (str, bytes, os.PathLike)) else ""
        path = os.path.normpath(os.fsdecode(path))
        is_ours = path.startswith(("/proc/", self._tests))
        return f"the code opened {path[:100]}" if is_ours and self._is_on_behalf(caller) else ""

    def _on_ctypes(self, arguments: tuple[Any, ...], caller: FrameType) -> str:
        return "the code used ctypes" if self._is_on_behalf(caller) else ""

    def _on_forbidden(self, name: str) -> Callable[[tuple[Any, ...], FrameType], str]:
        return lambda arguments, caller: f"the code called {name}" if self._is_on_behalf(caller) else ""


def _is_standard(code: CodeType) -> bool:
    return code.co_filename.startswith((STANDARD_LIBRARY, "<frozen ")) and not code.co_filename.startswith(SITE_PACKAGES)


def suspicious(source: str) -> Iterator[str]:
    """Signs that can be read from the candidate's text."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in nodes:
        for name in _imported(node):
            if name.split(".")[0] in FORBIDDEN_IMPORTS:
                yield f"the code imports {name}"
        if isinstance(node, ast.FunctionDef) and node.name in ("__eq__", "__ne__", "__bool__") and _is_constant(node):
            yield f"{node.name} of the code answers the same to everything"


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""


def _is_constant(function: ast.FunctionDef) -> bool:
    last = function.body[-1]
    return (
        len(function.body) == 1
        and isinstance(last, ast.Return)
        and isinstance(last.value, ast.Constant)
        and last.value.value is True
    )
