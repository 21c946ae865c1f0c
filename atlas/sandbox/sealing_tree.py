"""A syntax tree with its parents, as the rules of sealing look at it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Obstacle(Exception):
    """Why tests cannot be sealed."""

    def __init__(self, node: ast.AST, what: str) -> None:
        super().__init__(f"line {getattr(node, 'lineno', 1)} {what}")


class Names:
    """What the tests call the code by.

    Attributes:
        imported: name in the tests -> name in the code.
        modules: names of the whole module.
        entries: names of the entry point, in a checker.
    """

    def __init__(self) -> None:
        self.imported: dict[str, str] = {}
        self.modules: set[str] = set()
        self.entries: set[str] = set()


class Reference(NamedTuple):
    """A place where the tests name something of the code; "" is the entry point."""

    node: ast.expr
    name: str


class Tree:
    """All nodes of a module, and what each of them stands in."""

    def __init__(self, module: ast.Module) -> None:
        self.module = module
        self.nodes = list(ast.walk(module))
        self._parents = {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}

    def parent(self, node: ast.AST) -> ast.AST | None:
        return self._parents.get(node)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        while (parent := self._parents.get(node)) is not None:
            yield parent
            node = parent

    def scope(self, node: ast.AST) -> Scope:
        """The function a node is in, or the module."""
        for ancestor in self.ancestors(node):
            if isinstance(ancestor, FunctionNode):
                return ancestor
        return self.module

    def owner(self, node: ast.AST, kinds: type | tuple[type, ...]) -> ast.AST | None:
        """The nearest ancestor of some kind."""
        return next((ancestor for ancestor in self.ancestors(node) if isinstance(ancestor, kinds)), None)


def names_in(node: ast.AST) -> Iterator[tuple[str, ast.Name]]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id, inner


def bound_names(module: ast.Module) -> set[str]:
    """Every name that anything in a module binds, in whatever scope."""
    return {name for node in ast.walk(module) for name in bound_by(node)}


def bound_by(node: ast.AST) -> Iterator[str]:
    """Names that a node itself binds."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).partition(".")[0]
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest


def called_name(node: ast.AST) -> str:
    """What a call calls, or a decorator is: "pytest.raises", "self.assertRaises"; "" if that is no dotted name."""
    if isinstance(node, ast.Call):
        return called_name(node.func)
    if isinstance(node, ast.Attribute):
        base = called_name(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def base_name(node: ast.AST) -> str:
    """The name that a chain of attributes, subscripts and calls begins with."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call, ast.Starred)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
