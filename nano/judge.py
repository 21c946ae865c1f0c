"""Run a candidate on the hidden inputs and grade what it returned.

Three fences, none of which is a sandbox on its own: an allow-list over the syntax tree (no import, no attribute that is not a
plain method of a value, no dunder, no builtin that reaches the system), a child process with limits on CPU time, memory, files
and processes and an own empty network namespace where the kernel grants one, and a wall-clock limit after which it is killed. The
expected results never enter the child. What is not covered: defects of CPython itself; use the project's sandbox once it stands.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

Outcome = Literal["passed", "wrong", "error", "refused", "timeout", "no_tests"]

CPU_LIMIT_S = 2
WALL_LIMIT_S = 6.0  # a child that sleeps or waits; on a busy machine starting alone may take a second
MEMORY_LIMIT_BYTES = 256 * 1024 * 1024
OUTPUT_LIMIT_CHARS = 100_000

BUILTIN_NAMES = (
    "abs all any bool dict divmod enumerate filter float frozenset int isinstance len list map max min ord chr pow range repr "
    "reversed round set sorted str sum tuple zip ValueError TypeError IndexError KeyError ZeroDivisionError Exception"
)
METHOD_NAMES = (
    "append extend insert pop remove clear index count sort reverse copy get items keys values update setdefault add discard "
    "union intersection difference split join strip lstrip rstrip lower upper title startswith endswith replace find isdigit "
    "isalpha isalnum isupper islower isspace bit_length fromkeys"
)
BUILTINS, METHODS = frozenset(BUILTIN_NAMES.split()), frozenset(METHOD_NAMES.split())
NODES = (
    *(ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.NamedExpr),
    *(ast.If, ast.IfExp, ast.For, ast.While, ast.Break, ast.Continue, ast.Pass, ast.Expr, ast.Assert, ast.Raise, ast.Lambda),
    *(ast.Name, ast.Constant, ast.Attribute, ast.Call, ast.keyword, ast.Starred, ast.Subscript, ast.Slice, ast.expr_context),
    *(ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
    *(ast.JoinedStr, ast.FormattedValue),
)

# Runs in the child. Reads {"code", "name", "arguments"}; prints one repr, or null for an error, per argument.
CHILD = """
import ast, json, resource, sys
def limit(kind, value):
    resource.setrlimit(kind, (value, value))
request = json.loads(sys.stdin.read())
limit(resource.RLIMIT_CPU, request["cpu_s"])
limit(resource.RLIMIT_AS, request["memory_bytes"])
limit(resource.RLIMIT_FSIZE, 0)
limit(resource.RLIMIT_NPROC, 0)
limit(resource.RLIMIT_NOFILE, 3)
limit(resource.RLIMIT_CORE, 0)
allowed = {name: __builtins__.__dict__[name] for name in request["builtins"]}
arguments = [ast.literal_eval(text) for text in request["arguments"]]
namespace, results = {"__builtins__": allowed, "__name__": "solution"}, []
try:
    exec(compile(request["code"], "solution.py", "exec"), namespace)
    function = namespace[request["name"]]
except BaseException:
    results = [None] * len(arguments)
else:
    for argument in arguments:
        try:
            results.append(repr(function(argument))[: request["output_chars"]])
        except BaseException:
            results.append(None)
sys.stdout.write(json.dumps(results))
"""


class Verdict(NamedTuple):
    """How a candidate fared; `passed` needs every one of at least one test."""

    outcome: Outcome
    tests_run: int = 0
    tests_passed: int = 0

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def judge(code: str, entry_point: str, tests: Sequence[tuple[str, str]]) -> Verdict:
    """Grade `code` on (argument, expected result) pairs, both as Python literals.

    A result must have the type of the expected one: True is not 1, a tuple is not a list.
    """
    if not tests:
        return Verdict("no_tests")
    if refusal(code) is not None:
        return Verdict("refused")
    try:
        shown = _run_child(code, entry_point, [argument for argument, _ in tests])
    except subprocess.TimeoutExpired:
        return Verdict("timeout")
    if shown is None:
        return Verdict("timeout")  # killed for its CPU time, or it took the interpreter down
    passed = sum(_equal(result, expected) for result, (_, expected) in zip(shown, tests, strict=True))
    if passed == len(tests):
        return Verdict("passed", len(tests), passed)
    return Verdict("error" if None in shown else "wrong", len(tests), passed)


def refusal(code: str) -> str | None:
    """Why `code` may not run, or None."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"does not parse: {error}"
    for node in ast.walk(tree):
        if reason := _node_refusal(node):
            return f"line {getattr(node, 'lineno', 0)}: {reason}"
    return None


def _node_refusal(node: ast.AST) -> str | None:
    if not isinstance(node, NODES):
        return f"{type(node).__name__} is not allowed"
    if isinstance(node, ast.Attribute) and node.attr not in METHODS:
        return f"attribute {node.attr!r} is not allowed"
    if isinstance(node, ast.Name) and "__" in node.id:
        return f"name {node.id!r} is not allowed"
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        return "decorators are not allowed"
    return None


def _run_child(code: str, entry_point: str, arguments: list[str]) -> list[str | None] | None:
    """The `repr` of each result, None for an error; None altogether if the child died."""
    request = {
        "code": code,
        "name": entry_point,
        "arguments": arguments,
        "builtins": sorted(BUILTINS),
        "cpu_s": CPU_LIMIT_S,
        "memory_bytes": MEMORY_LIMIT_BYTES,
        "output_chars": OUTPUT_LIMIT_CHARS,
    }
    command = [*_network_fence(), sys.executable, "-I", "-S", "-c", CHILD]
    finished = subprocess.run(  # noqa: S603  fixed command; the untrusted text travels on stdin
        command, input=json.dumps(request), capture_output=True, text=True, timeout=WALL_LIMIT_S, check=False, env={}
    )
    if finished.returncode != 0:
        return None
    results: list[str | None] = json.loads(finished.stdout)
    return results


@cache
def _network_fence() -> tuple[str, ...]:
    """`unshare` into an empty network namespace where that is permitted."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    fence = (unshare, "--user", "--map-root-user", "--net")
    tried = subprocess.run([*fence, "true"], capture_output=True, check=False)  # noqa: S603  fixed command
    return fence if tried.returncode == 0 else ()


def _equal(shown: str | None, expected: str) -> bool:
    """Whether two literals are equal, type for type."""
    if shown is None:
        return False
    try:
        result = ast.literal_eval(shown)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return _same(result, ast.literal_eval(expected))


def _same(one: object, other: object) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other
