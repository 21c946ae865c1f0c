"""Every recorded defect, put back in a copy of the tree, turns its test red: tests that cannot fail prove nothing."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from py_compile import PycInvalidationMode

import msgspec
import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("atlas", "tests", "templates")
LINKED = ("models", "atlas.toml", "pyproject.toml")  # never changed
UNUSED = ("cacheprovider", "faker", "schemathesis")  # plugins that take their time to import
RED = 1  # pytest's status for failed tests; 2 and more are errors of another kind
TIMEOUT_S = 300.0


class Change(msgspec.Struct, frozen=True, array_like=True):
    file: str
    text: str
    replacement: str


class Mutation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    defect: str
    test: str
    changes: list[Change]


MUTATIONS = msgspec.convert(tomllib.loads(Path(__file__).with_name("mutations.toml").read_text())["mutation"], list[Mutation])


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.defect)
def test_each_mutation_has_its_place_and_its_test(mutation: Mutation) -> None:
    for change in mutation.changes:
        assert change.file.startswith(FOLDERS)
        assert (ROOT / change.file).read_text().count(change.text) == 1, f"{change.file}: {change.text}"
    path, _, name = mutation.test.partition("::")
    assert not name or f"def {name}(" in (ROOT / path).read_text()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree that the mutated code runs in."""
    target = tmp_path_factory.mktemp("mutated")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in LINKED:
        (target / name).symlink_to(ROOT / name)
    compileall.compile_dir(target, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)  # so that what is changed counts
    return target


def run_tests(copy: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", *(f"-pno:{plugin}" for plugin in UNUSED), *tests]
    environ = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    timeout_s = TIMEOUT_S if len(tests) == 1 else 4 * TIMEOUT_S
    return subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.mark.slow
@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.defect)
def test_each_defect_put_back_turns_its_test_red(copy: Path, mutation: Mutation) -> None:
    before = {change.file: (copy / change.file).read_text() for change in mutation.changes}
    try:
        for change in mutation.changes:
            path = copy / change.file
            path.write_text(path.read_text().replace(change.text, change.replacement))
        run = run_tests(copy, mutation.test)
    finally:
        for file, text in before.items():
            (copy / file).write_text(text)
    assert run.returncode == RED, run.stdout[-3000:] + run.stderr[-1000:]


@pytest.mark.slow
@pytest.mark.timeout(5 * TIMEOUT_S)
def test_without_a_mutation_the_same_tests_are_green(copy: Path) -> None:
    run = run_tests(copy, *sorted({mutation.test for mutation in MUTATIONS}))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
