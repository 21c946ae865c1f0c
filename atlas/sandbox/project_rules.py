"""What of a project a verdict rests on, which is therefore not the candidate's to change."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atlas.sandbox.project_files import Survey

TEST_FILES = ("test_*.py", "*_test.py")
TEST_DIRECTORIES = frozenset({"tests", "test"})  # where they hold tests; there are packages of that name that do not
FIXTURE_DIRECTORIES = frozenset({"fixtures", "testdata", "test_data", "test-data", "__snapshots__", "cassettes"})
DECIDING = frozenset(  # files that decide how tests are run, wherever they lie
    {
        "conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "pyproject.toml", "tox.ini", "setup.cfg",
        "noxfile.py", ".coveragerc", "sitecustomize.py", "usercustomize.py", "pyvenv.cfg",
    }
)  # fmt: skip
DECIDING_ENDS = (".pth", ".pyc", ".so", ".pyd")
FRAMEWORK = ("pytest", "_pytest", "pluggy")
RUNNING_UNDER_TEST = "PYTEST_CURRENT_TEST"


class Rules(NamedTuple):
    """Relative paths; see `why_protected`."""

    files: frozenset[str]  # that exist and stay as they are, those below `directories` included
    directories: tuple[str, ...]
    environments: tuple[str, ...]

    @property
    def mounted(self) -> tuple[str, ...]:
        """The fewest paths that hold all of `files`."""
        loose = (path for path in sorted(self.files) if _directory_above(path, self.directories) is None)
        return (*self.directories, *loose)

    def why_protected(self, path: str) -> str:
        """Why an edit must not touch this path; empty if it may."""
        name = path.rpartition("/")[2]
        if name in DECIDING or name.endswith(DECIDING_ENDS):
            return "it decides how the tests are run"
        if path in self.files:
            return "the tests rest on it"
        if environment := _directory_above(path, self.environments):
            return f"{environment} is the environment the tests are run in"
        if (directory := _directory_above(path, self.directories)) and not is_test_file(path):
            return f"the tests rest on what lies in {directory}; only new test files may be added there"
        return ""


def make_rules(found: Survey, *, patterns: Sequence[str] = (), named: Sequence[str] = ()) -> Rules:
    """Rules for a project.

    Args:
        found: its files.
        patterns: of the user, for further files and directories.
        named: files that the command or the results of its tests name.
    """
    directories = _outermost([*_test_directories(found.files), *_matching_directories(found.files, patterns)])
    files = {path for path in found.files if _is_deciding(path) or path in named or is_test_file(path)}
    files |= {path for path in found.files if any(fnmatch.fnmatch(path, pattern) for pattern in patterns)}
    files |= {path for path in found.files if _directory_above(path, directories) is not None}
    return Rules(frozenset(files), directories, found.environments)


def is_test_file(path: str) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatch.fnmatch(name, pattern) for pattern in TEST_FILES)


def _is_deciding(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name in DECIDING or name.endswith(".pth")


def _test_directories(files: Sequence[str]) -> Iterator[str]:
    for path in files:
        parts = path.split("/")[:-1]
        is_test = is_test_file(path) or path.endswith("conftest.py")
        for depth, part in enumerate(parts, 1):
            if part in FIXTURE_DIRECTORIES or (is_test and part in TEST_DIRECTORIES):
                yield "/".join(parts[:depth])


def _matching_directories(files: Sequence[str], patterns: Sequence[str]) -> Iterator[str]:
    for directory in {above for path in files for above in _above(path)} if patterns else ():
        if any(fnmatch.fnmatch(directory, pattern.rstrip("/")) for pattern in patterns):
            yield directory


def _above(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _outermost(paths: Sequence[str]) -> tuple[str, ...]:
    found = set(paths)
    return tuple(sorted(path for path in found if not found & set(_above(path))))


def _directory_above(path: str, directories: Sequence[str]) -> str | None:
    above = set(_above(path))
    return next((directory for directory in directories if directory in above), None)


def text_signs(path: str, before: str | None, after: str | None) -> Iterator[str]:
    """Signs of interference in a file that showed none before and is no test: what it has to do with the test framework."""
    if after is None or is_test_file(path) or not path.endswith(".py") or (before and any(_mentions(before))):
        return
    yield from (f"{path}: the edit {mention}" for mention in sorted(set(_mentions(after))))


def _mentions(source: str) -> Iterator[str]:
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in nodes:
        for name in _imported(node):
            if name.split(".")[0] in FRAMEWORK:
                yield f"imports {name}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_framework(node.value):
            yield f"speaks of {node.value[:80]!r}"
        if isinstance(node, ast.FunctionDef) and node.name in ("__eq__", "__ne__") and _is_constant(node):
            yield f"has an {node.name} that says the same of everything"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def _is_constant(function: ast.FunctionDef) -> bool:
    statement = function.body[-1]
    return len(function.body) == 1 and isinstance(statement, ast.Return) and isinstance(statement.value, ast.Constant)


def _is_framework(text: str) -> bool:
    return text in FRAMEWORK or text.startswith(("_pytest.", "pluggy.")) or text == RUNNING_UNDER_TEST
