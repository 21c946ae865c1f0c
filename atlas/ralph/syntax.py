"""Source as a syntax tree, and the questions asked of it. A model wrote the sources: nothing here raises on any text."""

from __future__ import annotations

import ast
import builtins
import hashlib
import warnings
from collections.abc import Iterator
from functools import lru_cache

CODE_LIMIT_CHARS = 200_000  # of what is parsed at all; no task here needs more
PRINTS_KEPT = 32  # candidates of one prompt often say the same; chosen

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BUILTINS = frozenset(dir(builtins))


def parse(code: str) -> ast.Module | None:
    """The tree, or None where there is none: wrong syntax, deeper nesting than the parser takes, text that is no text."""
    tree, _ = parse_or_line(code)
    return tree


def parse_or_line(code: str) -> tuple[ast.Module | None, int]:
    """The tree, or the line (from 1) that the parser stumbled over; 0 if it does not say."""
    if len(code) > CODE_LIMIT_CHARS:
        return None, 0
    try:
        with warnings.catch_warnings():  # of invalid escapes, to stderr
            warnings.simplefilter("ignore")
            return ast.parse(code), 0
    except SyntaxError as error:
        return None, error.lineno or 0
    except (ValueError, RecursionError, MemoryError):
        return None, 0


@lru_cache(maxsize=PRINTS_KEPT)
def fingerprint(code: str) -> str:
    """Equal for programs with the same syntax tree, docstrings, comments and layout aside; of the text where there is no tree."""
    tree = parse(code)
    try:
        text = code.strip() if tree is None else ast.dump(_without_docstrings(tree))
    except (RecursionError, MemoryError):
        text = code.strip()
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def definitions(tree: ast.Module) -> list[Definition]:
    """Functions and classes at the top level."""
    return [node for node in tree.body if isinstance(node, Definition)]


def defined_names(tree: ast.Module) -> set[str]:
    """Names that the module binds at its top level: definitions, assignments, imports."""
    return {name for node in tree.body for name in _bound(node)}


def free_names(tree: ast.Module) -> set[str]:
    """Names that are read somewhere and bound nowhere in the module."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return read - bound - arguments - defined_names(tree) - _BUILTINS


def has_statements(tree: ast.Module) -> bool:
    """Whether it does anything: a word of prose, a number, a list of words are syntax, too, and no program."""
    return any(not (isinstance(node, ast.Expr) and _is_inert(node.value)) for node in tree.body)


def is_literal(node: ast.expr) -> bool:
    """Whether the value stands there as it is."""
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def _is_inert(node: ast.expr) -> bool:
    return all(not isinstance(part, (ast.Call, ast.Await, ast.Yield, ast.NamedExpr)) for part in ast.walk(node))


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, Definition):
        yield node.name
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    else:
        stored = (part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))
        yield from (part.id for part in stored)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree
