"""`atlas verify` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ADD = "def add(a, b):\n    return a + b\n"
RIGHT = "from solution import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"
WRONG = "from solution import add\n\n\ndef test_add():\n    assert add(1, 2) == 4\n"
EXAMPLE = Path(__file__).parents[2] / "examples" / "project"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "add.py").write_text(ADD)
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "cases.json").write_text(
        json.dumps([{"args": [1, 2], "expected": 3}, {"args": "(2,)", "kwargs": "{'b': 2}", "expected": "4"}])
    )
    return tmp_path


def atlas(folder: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atlas", "verify", *arguments]
    environ = {**os.environ, "ATLAS_HOME": str(folder / "home")}
    return subprocess.run(command, cwd=folder, env=environ, input=text, capture_output=True, text=True, timeout=120, check=False)


def test_code_whose_tests_pass_is_verified_with_exit_status_0(folder: Path) -> None:
    done = atlas(folder, "add.py", "--tests", "right.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("verified: 1 of 1 tests passed (sealed, native")


def test_code_whose_tests_fail_is_not_verified_and_the_assertion_is_shown(folder: Path) -> None:
    done = atlas(folder, "add.py", "--tests", "wrong.py")
    assert done.returncode == 1
    assert done.stdout.startswith("not verified: failed")
    assert "assert 3 == 4" in done.stdout


def test_cases_are_read_from_json_and_the_evidence_is_printed_as_json(folder: Path) -> None:
    done = atlas(folder, "add.py", "--entry-point", "add", "--cases", "cases.json", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    evidence = json.loads(done.stdout)
    assert (evidence["success"], evidence["tests_run"], evidence["sealed"]) == (True, 2, True)


def test_code_that_only_runs_is_not_verified(folder: Path) -> None:
    done = atlas(folder, "-", text="print('hello')")
    assert done.returncode == 1
    assert "no test was run" in done.stdout


def test_a_file_that_is_not_there_is_one_line_and_no_trace(folder: Path) -> None:
    done = atlas(folder, "nosuch.py")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "atlas: nosuch.py: No such file or directory\n")


def test_neither_file_nor_project_is_misuse(folder: Path) -> None:
    assert atlas(folder).returncode == 2
    assert atlas(folder, "--project", ".").returncode == 2


def test_cases_that_are_not_cases_are_named(folder: Path) -> None:
    (folder / "cases.json").write_text('[{"arguments": [1]}]')
    done = atlas(folder, "add.py", "--entry-point", "add", "--cases", "cases.json")
    assert done.returncode == 1
    assert "cases.json" in done.stderr
    assert "arguments" in done.stderr
    assert "Traceback" not in done.stderr
