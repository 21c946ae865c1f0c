"""The tests that whoever asks has shown, in whatever form, as programs for the sandbox.

A pytest module stays one. Assert statements become cases, which can be sealed; those that have another form, and everything
with statements between them, stay code. Without tests, examples in the task are tests.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atlas.errors import BadRequest
from atlas.ralph.asserts import Called, call_text, commonest, split_asserts
from atlas.ralph.examples import examples_in, named_in, programs_in
from atlas.ralph.syntax import definitions, free_names, parse
from atlas.types import Case, CaseResult, Example, Program, Request, Snippet, TestSource

MIN_TESTS_TO_HOLD_BACK = 3
NAME_CHARS = 200  # of an assert, by which the sandbox names its result
TESTS_FILE = "test_solution.py"
SHOWN_TESTS_CHARS = 4000

Key = tuple[int, str]  # number of a check, and the name or position of a test in it


class Suite(NamedTuple):
    """What a candidate has to pass.

    Attributes:
        checks: programs whose code is still empty; all of them have to pass.
        entry_point: the function that is asked for; empty for whole programs.
        held_back: tests whose failures the model is never shown.
        is_shown: the task itself does not contain them, so that the prompt has to.
    """

    checks: tuple[Program, ...]
    source: TestSource
    entry_point: str = ""
    held_back: frozenset[Key] = frozenset()
    is_shown: bool = False

    @property
    def num_tests(self) -> int:
        return sum(1 for _ in _keys(self.checks))

    def is_held_back(self, check: int, position: int, result: CaseResult) -> bool:
        return (check, _key_of(self.checks[check], position, result)) in self.held_back


def read_tests(request: Request) -> Suite | None:
    """The visible tests of a request; None if there are none to be read.

    Raises:
        BadRequest: tests were given that hold no test, or do not say of what.
    """
    if request.tests.code.strip() or request.tests.cases:
        return _hold_back(_given(request), request.seed)
    return _in_task(request)


def smoke_suite(request: Request) -> Suite:
    """Where nothing can be tested: whether the program runs at all."""
    return Suite((Program(code="", language=request.language, mode="run", files=request.files),), "none")


def case_suite(request: Request, found: Sequence[Called], *, source: TestSource) -> Suite:
    """A suite of calls."""
    return Suite(tuple(_case_checks(found, request)), source, commonest(found))


def shown_examples(suite: Suite) -> tuple[Example, ...]:
    """Calls and results for the prompt: only what is not held back, and not in the task already."""
    if not suite.is_shown:
        return ()
    shown = []
    for number, check in enumerate(suite.checks):
        cases = [case for position, case in enumerate(check.cases) if (number, str(position)) not in suite.held_back]
        calls = [Called(check.entry_point, case) for case in cases] if check.mode == "function" else []
        shown += [Example(call=call_text(called), result=called.case.expected) for called in calls]
    return tuple(shown)


def shown_programs(suite: Suite) -> tuple[Case, ...]:
    """Inputs and outputs for the prompt, likewise."""
    checks = [(number, check) for number, check in enumerate(suite.checks) if suite.is_shown and check.mode == "stdin"]
    return tuple(
        case
        for number, check in checks
        for position, case in enumerate(check.cases)
        if (number, str(position)) not in suite.held_back
    )


def shown_code(suite: Suite) -> tuple[Snippet, ...]:
    """Test code for the prompt, without the tests that are held back."""
    texts = [_shown_text(check.test_code, number, suite) for number, check in enumerate(suite.checks) if check.test_code]
    return tuple(Snippet(path=TESTS_FILE, text=text[:SHOWN_TESTS_CHARS]) for text in texts if suite.is_shown and text.strip())


# -- tests that were given --


def _given(request: Request) -> Suite:
    runs = tuple(case for case in request.tests.cases if case.stdin is not None)
    calls = tuple(case for case in request.tests.cases if case.stdin is None)
    checks: list[Program] = []
    name = request.entry_point
    if request.tests.code.strip():
        name, checks = _code_checks(request)
    if calls:
        name = name or named_in(request.task)
        _require_name(name, "cases")
        checks.insert(0, _check(request, mode="function", entry_point=name, cases=calls))
    if runs:
        checks.append(_check(request, mode="stdin", cases=runs, language=request.language))
    return Suite(tuple(checks), "given", name, is_shown=True)


def _code_checks(request: Request) -> tuple[str, list[Program]]:
    """What is tested by code, and the checks."""
    code = request.tests.code
    tree = parse(code)
    if tree is None:
        raise BadRequest("the tests are no Python that parses; mend them, or give cases", param="tests")
    name = request.entry_point or named_in(request.task)
    if _is_pytest(tree):
        return name or _imported(tree), [_check(request, mode="pytest", test_code=code)]
    if any(node.name == "check" for node in definitions(tree)):
        _require_name(name, "code")
        return name, [_check(request, mode="function", entry_point=name, test_code=code)]
    return _assert_checks(request, tree, name)


def _assert_checks(request: Request, tree: ast.Module, name: str) -> tuple[str, list[Program]]:
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        raise BadRequest("the tests hold no test: give assert statements, functions test_..., or cases", param="tests")
    split = split_asserts(request.tests.code)
    name = name or commonest(split.cases) or next(iter(sorted(free_names(tree))), "")
    cases = [called._replace(name=name) if called.name == "candidate" else called for called in split.cases]
    rest = request.tests.code if split.rest is None else "\n".join(map(ast.unparse, split.rest))
    checks = list(_case_checks(cases, request)) if split.rest is not None else []
    if rest:
        _require_name(name, "code")
        checks.append(_check(request, mode="function", entry_point=name, test_code=rest))
    return name, checks


def _case_checks(found: Sequence[Called], request: Request) -> Iterator[Program]:
    """One check per function that is called."""
    by_name: dict[str, list[Case]] = {}
    for called in found:
        by_name.setdefault(called.name, []).append(called.case)
    for name, cases in by_name.items():
        yield _check(request, mode="function", entry_point=name, cases=tuple(cases))


def _check(request: Request, **fields: object) -> Program:
    return Program(code="", files=request.files, **fields)  # type: ignore[arg-type]  # the callers name fields of Program


def _require_name(name: str, what: str) -> None:
    if not name:
        raise BadRequest(f"the tests' {what} do not say which function they test; give entry_point", param="entry_point")


def _is_pytest(tree: ast.Module) -> bool:
    return any(node.name.startswith("Test" if isinstance(node, ast.ClassDef) else "test") for node in definitions(tree))


def _imported(tree: ast.Module) -> str:
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "solution"]
    return imports[0].names[0].name if imports else ""


# -- examples in the task --


def _in_task(request: Request) -> Suite | None:
    is_python = request.language == "python"
    found = examples_in(request.task, request.entry_point) if is_python else ()
    if found:
        return _hold_back(case_suite(request, found, source="given"), request.seed)
    name = request.entry_point or named_in(request.task)
    runs = () if name and is_python else programs_in(request.task)
    if not runs:
        return None
    return _hold_back(Suite((_check(request, mode="stdin", cases=runs, language=request.language),), "given"), request.seed)


# -- what is held back --


def _hold_back(suite: Suite, seed: int | None) -> Suite:
    """About a third of three or more tests; which, the seed decides."""
    keys = list(_keys(suite.checks))
    if len(keys) < MIN_TESTS_TO_HOLD_BACK:
        return suite
    chosen = random.Random(seed or 0).sample(range(len(keys)), round(len(keys) / 3))  # noqa: S311 - a draw, no secret
    return suite._replace(held_back=frozenset(keys[position] for position in chosen))


def _keys(checks: Sequence[Program]) -> Iterator[Key]:
    for number, check in enumerate(checks):
        if check.cases:
            yield from ((number, str(position)) for position in range(len(check.cases)))
        elif check.test_code:
            yield from ((number, name) for name in dict.fromkeys(_test_names(check.test_code)))


def _test_names(code: str) -> Iterator[str]:
    tree = parse(code)
    body = tree.body if tree else []
    if tree is not None and _is_pytest(tree):
        nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        yield from (node.name for node in nodes if node.name.startswith("test"))
    else:
        yield from ((ast.get_source_segment(code, node) or "")[:NAME_CHARS] for node in body if isinstance(node, ast.Assert))
        yield from ("check(candidate)" for node in body if isinstance(node, ast.FunctionDef) and node.name == "check")


def _key_of(check: Program, position: int, result: CaseResult) -> str:
    if check.cases:
        return str(position)
    return result.name.rpartition("::")[2].partition("[")[0] if check.mode == "pytest" else result.name[:NAME_CHARS]


def _shown_text(code: str, number: int, suite: Suite) -> str:
    tree = parse(code)
    assert tree is not None
    kept = [node for node in tree.body if not _is_hidden(node, code, number, suite)]
    return "\n\n".join(map(ast.unparse, kept))  # with decorators, which a segment of source leaves out


def _is_hidden(node: ast.stmt, code: str, number: int, suite: Suite) -> bool:
    """Whether a statement shows a test that is held back: the assert itself, its function, or a class that holds it."""
    if isinstance(node, ast.Assert):
        return (number, (ast.get_source_segment(code, node) or "")[:NAME_CHARS]) in suite.held_back
    named = [part.name for part in ast.walk(node) if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return any((number, name) in suite.held_back for name in named)
