"""Whether tests can be judged with the candidate in another box, decided from the tests alone, before the candidate runs.

Only plain values cross between the boxes, so tests can be sealed if all they do with the code is to call its functions with
plain values, catch its exceptions, read its constants, and use instances of its classes through methods, attributes and a few
built-in functions. The rules are conservative: what is not known to mean the same across the boundary is not sealed.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

import msgspec

from atlas.sandbox import sealing_rules as rules
from atlas.sandbox.sealing_tree import Names, Obstacle, Tree, bound_names, names_in

MODULE = "solution"


class Sealing(msgspec.Struct, frozen=True, kw_only=True):
    """What the tests allow, and what they want of the code.

    Attributes:
        reason: why they cannot be sealed, with the line.
        names: name in the code -> function, class, exception or constant.
    """

    ok: bool
    reason: str = ""
    names: dict[str, str] = {}


def can_seal(test_code: str) -> Sealing:
    """Of a test file for pytest, which imports `solution`."""
    return _decide(test_code, "")


def can_seal_checker(test_code: str, entry_point: str) -> Sealing:
    """Of a checker, in which the entry point is known by its name and as `candidate`.

    A function `check` brings everything else itself; free names of a script are the code's.
    """
    return _decide(test_code, entry_point)


def has_check(test_code: str) -> bool:
    """Whether a checker is a function `check(candidate)`."""
    tree = _parse(test_code)
    return tree is not None and any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)


def expected_tests(test_code: str) -> list[str]:
    """Names of the test functions a file defines, with their class; what pytest must report on, whatever the code does to it."""
    tree = _parse(test_code)
    return list(_test_names(tree)) if tree is not None else []


def _test_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            yield node.name
        if isinstance(node, ast.ClassDef) and (node.name.startswith("Test") or node.bases):
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
            if "__init__" not in methods:  # pytest passes over such a class
                yield from (f"{node.name}::{name}" for name in methods if name.startswith("test"))


def _parse(test_code: str) -> ast.Module | None:
    try:
        return ast.parse(test_code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _decide(test_code: str, entry_point: str) -> Sealing:
    module = _parse(test_code)
    if module is None:
        return Sealing(ok=True)  # no code of the candidate will ever run
    if entry_point:  # a prompt put before a checker defines a stub; see inside/checker.py
        module.body = [node for node in module.body if not (isinstance(node, ast.FunctionDef) and node.name == entry_point)]
    try:
        tree = Tree(module)
        names = _candidate_names(tree, entry_point)
        return Sealing(ok=True, names=rules.check(tree, names))
    except Obstacle as obstacle:
        return Sealing(ok=False, reason=str(obstacle))
    except RecursionError:
        return Sealing(ok=False, reason="the tests are nested too deep")


def _candidate_names(tree: Tree, entry_point: str) -> Names:
    names = Names()
    if entry_point:
        _add_checked(tree, entry_point, names)
    for node in tree.nodes:
        if isinstance(node, ast.ImportFrom) and node.module == MODULE and node.level == 0:
            _add_import(tree, node, names)
        elif isinstance(node, ast.Import):
            names.modules |= {alias.asname or MODULE for alias in node.names if alias.name == MODULE}
    return names


def _add_import(tree: Tree, node: ast.ImportFrom, names: Names) -> None:
    for alias in node.names:
        if alias.name == "*":
            names.imported |= {name: name for name in _free_names(tree)}
        else:
            names.imported[alias.asname or alias.name] = alias.name


def _add_checked(tree: Tree, entry_point: str, names: Names) -> None:
    names.entries |= {"candidate", entry_point}
    for node in tree.module.body:
        if isinstance(node, ast.FunctionDef) and node.name == "check":
            names.entries |= {argument.arg for argument in node.args.args[:1]}
            return
    names.imported |= {name: name for name in _free_names(tree) - names.entries}


def _free_names(tree: Tree) -> set[str]:
    """Names that are read and never bound."""
    read = {name for name, node in names_in(tree.module) if isinstance(node.ctx, ast.Load)}
    return {name for name in read - bound_names(tree.module) if not hasattr(builtins, name) and name != "__file__"}
