"""Rules for what the code hands out: results must be used as plain values, instances in the few ways that can cross."""

from __future__ import annotations

import ast
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction

from atlas.sandbox.sealing_tree import Obstacle, Reference, Scope, Tree, base_name, called_name

_PLAIN = (
    str, bytes, bytearray, int, float, complex, list, tuple, dict, set, frozenset, range, deque, Counter, OrderedDict,
    defaultdict, Decimal, Fraction, datetime, date, time, timedelta,
)  # fmt: skip
PLAIN_ATTRIBUTES = frozenset(name for kind in _PLAIN for name in dir(kind) if not name.startswith("__"))
TAKES_INSTANCE = frozenset({
    "len", "str", "repr", "list", "sorted", "set", "tuple", "iter", "next", "sum", "min", "max", "any", "all", "bool",
    "enumerate", "print", "assertIn", "assertNotIn", "assertTrue", "assertFalse", "assertIsNotNone",
})  # fmt: skip
MUTATORS = frozenset({
    "add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft", "insert",
    "intersection_update", "pop", "popitem", "popleft", "remove", "reverse", "rotate", "setdefault", "sort",
    "subtract", "symmetric_difference_update", "update",
})  # fmt: skip
_LOOPS = (ast.For, ast.While)


def check_objects(tree: Tree, references: list[Reference], kinds: dict[str, str]) -> None:
    """Follow what the code hands out through the tests.

    Raises:
        Obstacle: it is used in a way that could not cross.
    """
    objects = _Objects(tree, references, kinds)
    objects.follow()
    for node in tree.nodes:
        if objects.is_instance(node):
            objects.check_instance(node)
        elif objects.is_result(node):
            objects.check_result(node)
    _check_changes(tree, objects)


class _Objects:
    """What in the tests is an instance of the code's classes, and what came out of a call."""

    def __init__(self, tree: Tree, references: list[Reference], kinds: dict[str, str]) -> None:
        self._tree = tree
        self._calls: dict[ast.AST, str] = {}  # call -> class or function
        for reference in references:
            parent = tree.parent(reference.node)
            if isinstance(parent, ast.Call) and parent.func is reference.node:
                self._calls[parent] = kinds[reference.name]
        self._instances: set[tuple[Scope, str]] = set()
        self._attributes: set[str] = set()  # of `self`
        self._results: set[tuple[Scope, str]] = set()
        self._fixtures: set[str] = set()

    def follow(self) -> None:
        """Until no further name is found to hold an instance or a result."""
        before = -1
        while before != (before := self._size()):
            for node in self._tree.nodes:
                self._follow_node(node)

    def _size(self) -> int:
        return len(self._instances) + len(self._attributes) + len(self._results) + len(self._fixtures)

    def _follow_node(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Return, ast.Yield)) and node.value and self.is_instance(node.value):
            function = self._tree.owner(node, ast.FunctionDef)
            if isinstance(function, ast.FunctionDef) and self._is_fixture(function):
                self._fixtures.add(function.name)
        elif isinstance(node, ast.arg) and node.arg in self._fixtures:
            self._instances.add((self._tree.scope(node), node.arg))
        for target, value in _bindings(node):
            self._follow_binding(target, value)

    def _follow_binding(self, target: ast.AST, value: ast.AST) -> None:
        if self.is_instance(value):
            if isinstance(target, ast.Name):
                self._instances.add((self._tree.scope(target), target.id))
            elif isinstance(target, ast.Attribute) and called_name(target.value) in ("self", "cls"):
                self._attributes.add(target.attr)
        elif self.is_result(value):
            self._results |= {(self._tree.scope(name), name.id) for name in ast.walk(target) if isinstance(name, ast.Name)}

    @staticmethod
    def _is_fixture(node: ast.FunctionDef) -> bool:
        return any(called_name(decorator) in ("pytest.fixture", "fixture") for decorator in node.decorator_list)

    def is_instance(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            return self._calls.get(node) == "class"
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            return self._is_named(node, self._instances)
        return (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Load)
            and node.attr in self._attributes
            and called_name(node.value) in ("self", "cls")
        )

    def is_result(self, node: ast.AST) -> bool:
        """What a function or method returned, or an attribute or element of an instance; or a part of that."""
        if isinstance(node, ast.Call):
            return self._calls.get(node) == "function" or self._is_method(node.func)
        if isinstance(node, ast.Attribute):
            parent = self._tree.parent(node)
            return self.is_instance(node.value) and not (isinstance(parent, ast.Call) and parent.func is node)
        if isinstance(node, ast.Subscript):
            return self.is_instance(node.value) or self.is_result(node.value)
        return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and self._is_named(node, self._results)

    def _is_method(self, node: ast.AST) -> bool:
        return self.is_instance(node) or (isinstance(node, ast.Attribute) and self.is_instance(node.value))

    def _is_named(self, node: ast.Name, known: set[tuple[Scope, str]]) -> bool:
        scopes = [ancestor for ancestor in self._tree.ancestors(node) if isinstance(ancestor, Scope)]
        return any((scope, node.id) in known for scope in scopes)

    def check_instance(self, node: ast.AST) -> None:
        """An instance may be asked, not handed on."""
        parent = self._tree.parent(node)
        if isinstance(parent, ast.keyword):
            parent = self._tree.parent(parent)
        if not (self._is_asked(node, parent) or self._is_kept(parent)):
            raise Obstacle(node, "uses an instance of the code's class otherwise than by its methods and attributes")

    def _is_asked(self, node: ast.AST, parent: ast.AST | None) -> bool:
        if isinstance(parent, ast.Attribute):
            return isinstance(parent.ctx, ast.Load)
        if isinstance(parent, ast.Call):
            return parent.func is node or called_name(parent).rpartition(".")[2] in TAKES_INSTANCE
        if isinstance(parent, ast.Compare):
            return _is_membership(parent, node) or _is_none_check(parent)
        if isinstance(parent, ast.Subscript):
            return parent.value is node
        if isinstance(parent, (ast.For, ast.comprehension)):
            return parent.iter is node
        return isinstance(parent, (ast.Assert, ast.If, ast.While, ast.IfExp, ast.Expr)) or (
            isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.Not)
        )

    def _is_kept(self, parent: ast.AST | None) -> bool:
        if isinstance(parent, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
            targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
            return all(isinstance(target, ast.Name) or _is_own_attribute(target) for target in targets)
        if isinstance(parent, (ast.Return, ast.Yield)):
            function = self._tree.owner(parent, ast.FunctionDef)
            return isinstance(function, ast.FunctionDef) and self._is_fixture(function)
        return False

    def check_result(self, node: ast.AST) -> None:
        """A result is a plain value, and is used as one."""
        parent = self._tree.parent(node)
        if isinstance(parent, ast.Attribute) and parent.attr not in PLAIN_ATTRIBUTES:
            raise Obstacle(node, f"looks for .{parent.attr} at a result, which no plain value has")
        if isinstance(parent, ast.Call) and parent.func is node:
            raise Obstacle(node, "calls what the code returned")
        if isinstance(parent, ast.withitem):
            raise Obstacle(node, "enters what the code returned")

    def asks(self, node: ast.AST) -> bool:
        """Whether evaluating this node runs code of the candidate."""
        return node in self._calls or self.is_instance(node) or (isinstance(node, ast.Call) and self._is_method(node.func))

    def shared_at(self, node: ast.AST) -> Iterator[ast.Name]:
        """Names whose values this node hands to the code, or gets from it."""
        if isinstance(node, ast.Call) and (node in self._calls or self._is_method(node.func)):
            for argument in (*node.args, *node.keywords):
                yield from _names_beside_copies(argument)
        for target, value in _bindings(node):
            if self.is_result(value):
                yield from (name for name in ast.walk(target) if isinstance(name, ast.Name))


def _bindings(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Targets and what is bound to them."""
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value:
        yield node.target, node.value
    elif isinstance(node, (ast.For, ast.comprehension)):
        yield node.target, node.iter


def _is_own_attribute(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and called_name(node.value) in ("self", "cls")


def _is_membership(node: ast.Compare, instance: ast.AST) -> bool:
    return node.comparators == [instance] and isinstance(node.ops[0], (ast.In, ast.NotIn))


def _is_none_check(node: ast.Compare) -> bool:
    return isinstance(node.ops[0], (ast.Is, ast.IsNot)) and any(
        isinstance(side, ast.Constant) and side.value is None for side in (node.left, *node.comparators)
    )


def _check_changes(tree: Tree, objects: _Objects) -> None:
    """What the code may have kept is not changed before the code is asked again: the code would not see the change.

    Within one call both sides share their containers (inside/values.py); from one call to the next they do not.
    """
    for scope in (node for node in tree.nodes if isinstance(node, Scope)):
        inner = [node for node in ast.walk(scope) if node is scope or tree.scope(node) is scope]
        shared = [name for node in inner for name in objects.shared_at(node)]
        asked = [node for node in inner if objects.asks(node)]
        for change, name in _changes(inner, objects):
            is_shared = any(other.id == name and _may_precede(tree, other, change, name) for other in shared)
            if is_shared and any(_may_precede(tree, change, node, name) and not _contains(change, node) for node in asked):
                raise Obstacle(change, f"changes {name}, which the code may have kept, and then asks the code again")


def _changes(nodes: list[ast.AST], objects: _Objects) -> Iterator[tuple[ast.AST, str]]:
    """Where a container is changed, and the name it is reached by."""
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            if not objects.is_instance(node.func.value):
                yield node, base_name(node.func.value)
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load) and not objects.is_instance(node.value):
            yield node, base_name(node)
        elif isinstance(node, ast.AugAssign):
            yield node, base_name(node.target)


def _may_precede(tree: Tree, first: ast.AST, second: ast.AST, name: str) -> bool:
    """By their lines, or because both are in one loop, which does not begin with another value of that name."""
    if getattr(first, "lineno", 0) < getattr(second, "lineno", 0):
        return True
    loops = {ancestor for ancestor in tree.ancestors(first) if isinstance(ancestor, _LOOPS) and not _binds(ancestor, name)}
    return any(ancestor in loops for ancestor in tree.ancestors(second))


def _binds(loop: ast.AST, name: str) -> bool:
    """Whether each round of a loop, as its first or a plain statement, binds a name anew."""
    body = loop.body if isinstance(loop, _LOOPS) else []
    targets = [target for statement in body if isinstance(statement, ast.Assign) for target in statement.targets]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _names_beside_copies(node: ast.AST) -> Iterator[ast.Name]:
    if isinstance(node, ast.Name):
        yield node
    if not (isinstance(node, ast.Call) and called_name(node) in ("copy.deepcopy", "deepcopy")):
        for child in ast.iter_child_nodes(node):
            yield from _names_beside_copies(child)


def _contains(outer: ast.AST, inner: ast.AST) -> bool:
    return any(node is inner for node in ast.walk(outer))
