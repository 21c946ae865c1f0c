"""Assert statements as cases: a call with literal arguments and the literal it must return.

A case can be sealed: the call runs in a box, and what it returned is compared outside. What does not have this form stays code.
"""

from __future__ import annotations

import ast
import builtins
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from atlas.ralph.syntax import is_literal, parse
from atlas.types import Case, Compare

LITERAL_LIMIT_CHARS = 20_000
DEPTH_LIMIT = 20  # brackets within brackets; the sandbox takes a little more
APPROX_TOLERANCE = 1e-6  # pytest.approx's own; math.isclose's is stricter
_ISCLOSE_TOLERANCE = 1e-9
_APPROX = ("approx", "pytest.approx")
_ISCLOSE = ("isclose", "math.isclose")


class Called(NamedTuple):
    """A case, and the function it calls."""

    name: str
    case: Case


class Split(NamedTuple):
    """What can be cases, and the statements that cannot; they are None if the order of all of them matters."""

    cases: tuple[Called, ...]
    rest: tuple[ast.stmt, ...] | None


def split_asserts(code: str) -> Split:
    """Cases of a text of assert statements and imports; with anything else in it, it stays a whole."""
    tree = parse(code)
    if tree is None:
        return Split((), None)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    asserts = [node for node in tree.body if isinstance(node, ast.Assert)]
    if len(imports) + len(asserts) < len(tree.body):
        return Split((), None)
    read = [(node, _of_a_function(read_assert(node))) for node in asserts]
    rest = [node for node, called in read if called is None]
    return Split(tuple(called for _, called in read if called), tuple([*imports, *rest] if rest else []))


def loose_cases(text: str) -> tuple[Called, ...]:
    """Every case in a text of which only some lines may be asserts; a bare call is taken to return True, its denial False."""
    found = []
    for line in text.splitlines():
        tree = parse(line.strip()) if line.strip().startswith("assert ") else None
        if tree is not None and isinstance(tree.body[0], ast.Assert):
            found.append(read_assert(tree.body[0]) or _read_truth(tree.body[0].test))
    return tuple(called for called in found if called is not None)


def read_assert(node: ast.Assert) -> Called | None:
    """The case that an assert is, or None: `call == literal` either way round, `is`, approx and isclose."""
    test = node.test
    if isinstance(test, ast.Call) and ast.unparse(test.func) in _ISCLOSE:
        return _read_isclose(test)
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return None
    left, right = test.left, test.comparators[0]
    if isinstance(test.ops[0], ast.Is):
        return as_case(left, right, compare="exact") if isinstance(right, ast.Constant) else None
    if not isinstance(test.ops[0], ast.Eq):
        return None
    if isinstance(right, ast.Call) and ast.unparse(right.func) in _APPROX:
        return _read_approx(left, right)
    return as_case(left, right) or as_case(right, left)


def as_case(call: ast.expr, expected: ast.expr, *, compare: Compare = "approx", tolerance: float = 0.0) -> Called | None:
    """A call and what it must return; None unless all of it is literal.

    Comparison is approximate with tolerance 0, which is Python's `==` but for True and 1: numbers of different types are equal,
    a tuple is no list.
    """
    if not isinstance(call, ast.Call) or not (name := _called_name(call.func)) or not _is_small_literal(expected):
        return None
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    if any(keyword.arg is None for keyword in call.keywords) or not all(map(_is_small_literal, arguments)):
        return None
    positional = ast.unparse(ast.Tuple(elts=list(call.args), ctx=ast.Load()))
    keywords = ", ".join(f"{keyword.arg!r}: {ast.unparse(keyword.value)}" for keyword in call.keywords)
    case = Case(
        args=positional, kwargs="{" + keywords + "}", expected=ast.unparse(expected), compare=compare, tolerance=tolerance
    )
    return Called(name, case)


def call_text(called: Called) -> str:
    """The call as source."""
    tree = ast.parse(called.case.args, mode="eval").body
    keywords = ast.literal_eval(called.case.kwargs)
    positional = [ast.unparse(item) for item in tree.elts] if isinstance(tree, (ast.Tuple, ast.List)) else []
    return f"{called.name}({', '.join([*positional, *(f'{name}={value!r}' for name, value in keywords.items())])})"


def commonest(called: Sequence[Called]) -> str:
    """The name that most of the cases call; of equally many, the first."""
    counts = Counter(entry.name for entry in called)
    return counts.most_common(1)[0][0] if counts else ""


def _of_a_function(called: Called | None) -> Called | None:
    """None for calls of what Python brings along."""
    return None if called is None or called.name in dir(builtins) else called


def _called_name(function: ast.expr) -> str:
    """`f`, or `f` of `solution.f`; of anything else, nothing."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "solution":
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _read_approx(call: ast.expr, approx: ast.Call) -> Called | None:
    tolerance = _relative(approx.keywords, "rel", APPROX_TOLERANCE)
    if len(approx.args) != 1 or tolerance is None or not _is_large(approx.args[0]):
        return None
    return as_case(call, approx.args[0], tolerance=tolerance)


def _read_isclose(test: ast.Call) -> Called | None:
    tolerance = _relative(test.keywords, "rel_tol", _ISCLOSE_TOLERANCE)
    if len(test.args) != 2 or tolerance is None:
        return None
    call, expected = test.args if isinstance(test.args[0], ast.Call) else reversed(test.args)
    return as_case(call, expected, tolerance=tolerance) if _is_large(expected) else None


def _relative(keywords: Sequence[ast.keyword], name: str, default: float) -> float | None:
    """The relative tolerance; None if anything else is said."""
    if not keywords:
        return default
    if len(keywords) > 1 or keywords[0].arg != name or not is_literal(keywords[0].value):
        return None
    value = ast.literal_eval(keywords[0].value)
    return float(value) if isinstance(value, (int, float)) else None


def _is_large(node: ast.expr) -> bool:
    """Whether a relative tolerance is the larger one: a case's is absolute as well, which would let near 0 pass what is wrong."""
    value = ast.literal_eval(node) if is_literal(node) else None
    return isinstance(value, (int, float)) and abs(value) >= 1


def _read_truth(test: ast.expr) -> Called | None:
    is_denied = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    call = test.operand if isinstance(test, ast.UnaryOp) else test
    return as_case(call, ast.Constant(not is_denied), compare="exact")


def _is_small_literal(node: ast.expr) -> bool:
    """Whether the sandbox takes the value: a model may have written it, and what it writes must not become a wrong request."""
    is_small = is_literal(node) and _depth(node) <= DEPTH_LIMIT and len(ast.unparse(node)) <= LITERAL_LIMIT_CHARS
    return is_small and all(_travels(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant))


def _travels(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() or value.encode("utf-8", "ignore").decode() == value  # no lone surrogate
    return value is not Ellipsis


def _depth(node: ast.AST) -> int:
    return 1 + max(map(_depth, ast.iter_child_nodes(node)), default=0)
