"""The rules that tests must keep to be sealed (sealing.py says why there are any)."""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from atlas.sandbox.sealing_objects import check_objects
from atlas.sandbox.sealing_tree import Names, Obstacle, Reference, Tree, bound_by, bound_names, called_name

# Modules that mean the same in every process, and give nothing to reach the code by.
MODULES = frozenset({
    "__future__", "abc", "base64", "binascii", "bisect", "calendar", "cmath", "collections", "collections.abc",
    "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "itertools",
    "json", "math", "numbers", "operator", "pytest", "random", "re", "statistics", "string", "struct", "textwrap",
    "time", "typing", "unittest", "uuid", "zlib",
})  # fmt: skip
ATTRIBUTES = {
    "os": frozenset({"path"}),
    "pytest": frozenset({"approx", "fail", "fixture", "main", "mark", "param", "raises", "skip", "xfail"}),
    "sys": frozenset({"float_info", "maxsize", "path", "version_info"}),
    "unittest": frozenset({"TestCase", "main", "skip", "skipIf", "skipUnless", "expectedFailure"}),
}
BUILTINS = frozenset({
    "__import__", "breakpoint", "compile", "delattr", "eval", "exec", "globals", "id", "input", "locals",
    "memoryview", "open", "setattr", "vars",
})  # fmt: skip
METHODS = frozenset({
    "assertLogs", "assertNoLogs", "assertWarns", "assertWarnsRegex", "send", "throw", "cache_clear", "cache_info",
    "cache_parameters",
})  # fmt: skip
FIXTURES = frozenset({"capsys", "request", "subtests"})
TAKES_FUNCTION = frozenset(
    {"sorted", "min", "max", "map", "filter", "sort", "reduce", "raises", "assertRaises", "assertRaisesRegex"}
)
RAISES = frozenset({"raises", "assertRaises", "assertRaisesRegex"})


def check(tree: Tree, names: Names) -> dict[str, str]:
    """What the tests want of the code, by kind: function, class, exception or constant.

    Raises:
        Obstacle: why they cannot be sealed.
    """
    references = list(_references(tree, names))
    for node in tree.nodes:
        _check_node(tree, node)
    if not names.entries:
        _check_fixtures(tree)
    _check_rebinding(tree, names)
    _check_helpers(tree)
    kinds = _classify(tree, names, references)
    check_objects(tree, references, kinds)
    kinds.pop("", None)
    return kinds


def _references(tree: Tree, names: Names) -> Iterator[Reference]:
    """Every place where the tests name something of the code."""
    for node in tree.nodes:
        if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
            continue
        if node.id in names.modules:
            parent = tree.parent(node)
            if not isinstance(parent, ast.Attribute) or not isinstance(parent.ctx, ast.Load):
                raise Obstacle(node, "uses the module `solution` as a value")
            yield Reference(parent, parent.attr)
        elif node.id in names.imported:
            yield Reference(node, names.imported[node.id])
        elif node.id in names.entries:
            yield Reference(node, "")


def _check_node(tree: Tree, node: ast.AST) -> None:
    """Rules that a node breaks by itself."""
    if isinstance(node, (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)):
        raise Obstacle(node, "is asynchronous")
    if isinstance(node, ast.Name):
        _check_name(tree, node)
    elif isinstance(node, ast.Lambda) and not _is_argument_of(tree, node, TAKES_FUNCTION):
        raise Obstacle(node, "makes a function that might be passed to the code")
    elif rule := _RULES.get(type(node)):
        rule(node)


def _check_import(node: ast.Import | ast.ImportFrom) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name not in MODULES and alias.name not in ("solution", "os", "sys", "os.path"):
                raise Obstacle(node, f"imports {alias.name}")
        return
    module = node.module or ""
    if node.level or (module not in MODULES and module not in ("solution", "os", "sys", "os.path")):
        raise Obstacle(node, f"imports from {'.' * node.level}{module}")
    for alias in node.names:
        if module in ATTRIBUTES and alias.name not in ATTRIBUTES[module]:
            raise Obstacle(node, f"uses {module}.{alias.name}")


def _check_name(tree: Tree, node: ast.Name) -> None:
    if node.id in BUILTINS:
        raise Obstacle(node, f"uses {node.id}")
    if node.id in ATTRIBUTES and isinstance(node.ctx, ast.Load):
        parent = tree.parent(node)
        if not isinstance(parent, ast.Attribute) or parent.attr not in ATTRIBUTES[node.id]:
            used = f".{parent.attr}" if isinstance(parent, ast.Attribute) else " as a value"
            raise Obstacle(node, f"uses {node.id}{used}")


def _check_attribute(node: ast.Attribute) -> None:
    if node.attr.startswith("__") and called_name(node) != "self.__class__":
        raise Obstacle(node, f"looks at {node.attr}")
    if node.attr in METHODS:
        raise Obstacle(node, f"uses .{node.attr}")


def _check_identity(node: ast.Compare) -> None:
    sides = [node.left, *node.comparators]
    for operator, left, right in zip(node.ops, sides, sides[1:], strict=False):
        is_constant = isinstance(left, ast.Constant) or isinstance(right, ast.Constant)
        if isinstance(operator, (ast.Is, ast.IsNot)) and not is_constant and not _is_type_check(left):
            raise Obstacle(node, "asks whether two objects are the same one")


def _is_type_check(left: ast.AST) -> bool:
    return isinstance(left, ast.Call) and called_name(left) == "type"


def _check_call(node: ast.Call) -> None:
    name = called_name(node).rpartition(".")[2]
    if name in ("assertIs", "assertIsNot") and not any(isinstance(argument, ast.Constant) for argument in node.args[:2]):
        raise Obstacle(node, "asks whether two objects are the same one")


def _check_class(node: ast.ClassDef) -> None:
    is_test_case = [called_name(base) for base in node.bases] in (["unittest.TestCase"], ["TestCase"])
    if not is_test_case and (node.bases or not node.name.startswith("Test")):
        raise Obstacle(node, f"defines the class {node.name}, whose instances could not cross")


_RULES: dict[type[ast.AST], Callable[[Any], None]] = {
    ast.Import: _check_import,
    ast.ImportFrom: _check_import,
    ast.Attribute: _check_attribute,
    ast.Compare: _check_identity,
    ast.Call: _check_call,
    ast.ClassDef: _check_class,
}


def _check_fixtures(tree: Tree) -> None:
    own = {node.name for node in tree.nodes if isinstance(node, ast.FunctionDef) and is_fixture(node)}
    for node in tree.nodes:
        if isinstance(node, ast.FunctionDef) and (node.name.startswith("test") or is_fixture(node)):
            known = own | FIXTURES | set(_parameters(tree, node)) | {"self", "cls"}
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                if argument.arg not in known:
                    raise Obstacle(node, f"takes the fixture {argument.arg}")


def is_fixture(node: ast.FunctionDef) -> bool:
    return any(called_name(decorator) in ("pytest.fixture", "fixture") for decorator in node.decorator_list)


def _parameters(tree: Tree, node: ast.FunctionDef) -> Iterator[str]:
    """Names that `parametrize` gives to a test."""
    owner = tree.parent(node)
    decorators = [*node.decorator_list, *(owner.decorator_list if isinstance(owner, ast.ClassDef) else ())]
    for decorator in decorators:
        if isinstance(decorator, ast.Call) and called_name(decorator).endswith("mark.parametrize") and decorator.args:
            for constant in ast.walk(decorator.args[0]):
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    yield from (name.strip() for name in constant.value.split(","))


def _check_rebinding(tree: Tree, names: Names) -> None:
    ours = set(names.imported) | names.modules | names.entries
    for node in tree.nodes:
        if isinstance(node, ast.alias) or (isinstance(node, ast.arg) and _is_checked(tree, node)):
            continue
        for name in ours.intersection(bound_by(node)):
            raise Obstacle(node, f"gives the name {name} another meaning")


def _is_checked(tree: Tree, node: ast.arg) -> bool:
    scope = tree.scope(node)
    return isinstance(scope, ast.FunctionDef) and scope.name == "check"


def _check_helpers(tree: Tree) -> None:
    """Functions of the tests, and built-in ones, may be called but not handed on."""
    bound = bound_names(tree.module)
    own = {node.name for node in tree.nodes if isinstance(node, ast.FunctionDef) and not is_fixture(node)}
    for node in tree.nodes:
        if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load) or _is_called(tree, node):
            continue
        if node.id in own and not _is_argument_of(tree, node, TAKES_FUNCTION):
            raise Obstacle(node, f"passes the function {node.id} on")
        if node.id not in bound and _is_plain_function(node.id) and _may_reach_code(tree, node):
            raise Obstacle(node, f"may pass {node.id} to the code")


def _is_plain_function(name: str) -> bool:
    found = getattr(builtins, name, None)
    return callable(found) and not (isinstance(found, type) and issubclass(found, BaseException))


def _may_reach_code(tree: Tree, node: ast.Name) -> bool:
    """A built-in function as an argument may; as the second one of isinstance, in an annotation or compared it does not."""
    for ancestor in tree.ancestors(node):
        if isinstance(ancestor, ast.Call):
            return called_name(ancestor).rpartition(".")[2] not in (
                TAKES_FUNCTION | {"isinstance", "issubclass", "assertIsInstance", "assertNotIsInstance", "defaultdict"}
            )
        if isinstance(ancestor, (ast.stmt, ast.arg, ast.Compare)):
            return isinstance(ancestor, ast.Assign)
    return False


def _is_called(tree: Tree, node: ast.AST) -> bool:
    parent = tree.parent(node)
    return isinstance(parent, ast.Call) and parent.func is node


def _is_argument_of(tree: Tree, node: ast.AST, functions: frozenset[str]) -> bool:
    parent = tree.parent(node)
    if isinstance(parent, ast.keyword):
        parent = tree.parent(parent)
    return isinstance(parent, ast.Call) and parent.func is not node and called_name(parent).rpartition(".")[2] in functions


class _Uses(NamedTuple):
    called: list[ast.AST]
    caught: list[ast.AST]
    others: list[ast.AST]


def _classify(tree: Tree, names: Names, references: list[Reference]) -> dict[str, str]:
    """What each name is, by how it is used and written."""
    uses: dict[str, _Uses] = defaultdict(lambda: _Uses([], [], []))
    for reference in references:
        found = uses[reference.name]
        if _is_decorator(tree, reference.node):
            raise Obstacle(reference.node, f"decorates with {reference.name or 'the code'}")
        kind = (
            found.called
            if _is_called(tree, reference.node)
            else found.caught
            if _is_caught(tree, reference.node)
            else found.others
        )
        kind.append(reference.node)
    kinds = {name: _kind(name, found) for name, found in uses.items()}
    for name in names.imported.values():
        kinds.setdefault(name, _kind(name, _Uses([], [], [])))
    return kinds


def _kind(name: str, uses: _Uses) -> str:
    is_capitalised = name.lstrip("_")[:1].isupper()
    if (uses.caught and is_capitalised) or name.endswith(("Error", "Exception")):
        if uses.called:
            raise Obstacle(uses.called[0], f"makes a {name} of the code")
        return "exception"
    if name.isupper() and not uses.called:
        return "constant"
    if uses.others:
        raise Obstacle(uses.others[0], f"uses {name or 'the entry point'} otherwise than by calling it")
    return "class" if is_capitalised else "function"


def _is_decorator(tree: Tree, node: ast.AST) -> bool:
    for ancestor in tree.ancestors(node):
        if isinstance(ancestor, (ast.FunctionDef, ast.ClassDef)):
            return any(node in ast.walk(decorator) for decorator in ancestor.decorator_list) and not _is_in_mark(tree, node)
        if isinstance(ancestor, ast.stmt):
            return False
    return False


def _is_in_mark(tree: Tree, node: ast.AST) -> bool:
    return any(
        isinstance(ancestor, ast.Call) and called_name(ancestor).endswith("mark.parametrize") for ancestor in tree.ancestors(node)
    )


def _is_caught(tree: Tree, node: ast.AST) -> bool:
    """Where an exception class belongs; a function there is called by pytest."""
    parent = tree.parent(node)
    if isinstance(parent, ast.Tuple):
        node, parent = parent, tree.parent(parent)
    if isinstance(parent, ast.keyword):
        parent = tree.parent(parent)
    return isinstance(parent, ast.ExceptHandler) or (
        isinstance(parent, ast.Call) and called_name(parent).rpartition(".")[2] in RAISES | {"isinstance", "issubclass"}
    )
