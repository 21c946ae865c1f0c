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
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "atlas: nosuch.py: No such file or directory\n")


def test_neither_file_nor_project_is_misuse(folder: Path) -> None:
    assert atlas(folder).returncode == 2
    assert atlas(folder, "--project", ".").returncode == 2
    done = atlas(folder, "add.py", "--tests", "right.py", "--protect", "data/*")
    assert (done.returncode, "--protect is of --project" in done.stderr) == (2, True)


def test_a_receipt_that_is_not_there_is_misuse_and_one_that_is_none_is_not_verified(folder: Path) -> None:
    done = atlas(folder, "nosuch.json")
    assert (done.returncode, done.stderr) == (2, "atlas: nosuch.json: No such file or directory\n")
    (folder / "receipt.json").write_text("{}")
    done = atlas(folder, "receipt.json")
    assert done.returncode == 1
    assert done.stderr.startswith("atlas: receipt.json: ")


def test_a_language_that_is_not_there_is_misuse(folder: Path) -> None:
    (folder / "cases.json").write_text("[]")
    done = atlas(folder, "add.py", "--mode", "stdin", "--cases", "cases.json")
    assert (done.returncode, "cases" in done.stderr) == (2, True)


def test_a_sandbox_that_cannot_run_anything_is_no_verdict_but_exit_status_3(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_SANDBOX_PYTHON", "/nonexistent/python")
    done = atlas(folder, "add.py", "--tests", "right.py")
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert "atlas doctor" in done.stderr


BROKEN = "def double(x):\n    return x\n\n\ndef half(x):\n    return x\n"
MEND = "src.py\n<<<<<<< SEARCH\ndef double(x):\n    return x\n=======\ndef double(x):\n    return 2 * x\n>>>>>>> REPLACE\n"
TESTS = """
from src import double, half


def test_double():
    assert double(2) == 4


def test_half():
    assert half(4) == 2
"""


@pytest.fixture
def project(folder: Path) -> Path:
    (folder / "project").mkdir()
    for name, text in (("src.py", BROKEN), ("test_src.py", TESTS), ("mend.txt", MEND)):
        (folder / "project" / name).write_text(text)
    return folder / "project"


def judge(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return atlas(folder, "--project", "project", "--python", sys.prefix, "--edits", "project/mend.txt", *options)


def test_of_a_project_the_tests_that_must_pass_now_can_be_named(folder: Path, project: Path) -> None:
    assert judge(folder).returncode == 1  # half still fails
    done = judge(folder, "--fail-to-pass", "test_src.py::test_double", "--timeout", "60", "--memory-mb", "512")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("verified: 1 of 1 failing tests pass now")


def test_what_a_project_protects_a_change_must_leave_alone(folder: Path, project: Path) -> None:
    done = judge(folder, "--protect", "src.py", "--fail-to-pass", "test_src.py::test_double")
    assert done.returncode == 1
    assert "not verified: tampered" in done.stdout


def test_a_project_s_tests_have_no_more_time_than_they_are_given(folder: Path, project: Path) -> None:
    (project / "test_src.py").write_text(TESTS.replace("assert double(2) == 4", "import time; time.sleep(60)"))
    done = judge(folder, "--timeout", "1")
    assert (done.returncode, "took too long" in done.stderr) == (2, True)  # without the change already: nothing can be judged


def test_what_tests_shall_see_beside_a_project_must_be_there(folder: Path, project: Path) -> None:
    (project / "test_src.py").write_text(f"from pathlib import Path\n{TESTS}    Path({str(folder / 'data')!r}).read_text()\n")
    only = ("--fail-to-pass", "test_src.py::test_double", "--read-only", "data")
    done = judge(folder, *only)
    assert (done.returncode, "'data' does not exist" in done.stderr) == (2, True)
    (folder / "data").write_text("seen")
    (project / "src.py").write_text(BROKEN.replace("def half(x):\n    return x", "def half(x):\n    return x // 2"))
    assert judge(folder, *only).returncode == 0


def test_a_verified_change_that_cannot_be_handed_over_is_exit_status_3(folder: Path, project: Path) -> None:
    done = judge(folder, "--fail-to-pass", "test_src.py::test_double", "--branch", "mended")
    assert done.stdout.startswith("verified")
    assert (done.returncode, "git" in done.stderr) == (3, True)


def test_cases_that_are_not_cases_are_named(folder: Path) -> None:
    (folder / "cases.json").write_text('[{"arguments": [1]}]')
    done = atlas(folder, "add.py", "--entry-point", "add", "--cases", "cases.json")
    assert done.returncode == 2
    assert "cases.json" in done.stderr
    assert "arguments" in done.stderr
    assert "Traceback" not in done.stderr
