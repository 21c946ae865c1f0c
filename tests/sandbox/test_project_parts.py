"""What project mode decides without a box: what is protected, what a command means, what two runs say together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from atlas.errors import BadRequest
from atlas.sandbox.boxes import BoxResult
from atlas.sandbox.edits_tree import Rejected
from atlas.sandbox.project_command import check_directory, find_interpreter, parse_command
from atlas.sandbox.project_files import read_text, survey
from atlas.sandbox.project_results import conclude
from atlas.sandbox.project_rules import Rules, make_rules, text_signs
from atlas.sandbox.project_verdict import NOTHING_FAILED, SUCCEEDED_BEFORE, compare, compare_status
from atlas.types import CaseOutcome, CaseResult, ProjectRun


def make(directory: Path, *paths: str) -> Path:
    for path in paths:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text("")
    return directory


def rules(directory: Path, *paths: str, patterns: tuple[str, ...] = ()) -> Rules:
    return make_rules(survey(make(directory, *paths)), patterns=patterns)


def test_a_survey_finds_files_environments_and_histories_and_leaves_caches_out(tmp_path: Path) -> None:
    make(
        tmp_path,
        "a.py",
        "p/b.py",
        ".git/config",
        "sub/.git",
        "env/pyvenv.cfg",
        "env/lib/x.py",
        "node_modules/y/z.js",
        "p/__pycache__/b.pyc",
    )
    found = survey(tmp_path)
    assert found.files == ("a.py", "p/b.py")
    assert (found.environments, found.histories) == (("env", "node_modules"), (".git", "sub/.git"))


@pytest.mark.parametrize("change", ["write", "touch", "make", "remove", "mode", "link"])
def test_every_change_makes_another_digest(tmp_path: Path, change: str) -> None:
    make(tmp_path, "a.py", "b.py")
    before = survey(tmp_path).digest
    assert survey(tmp_path).digest == before
    file = tmp_path / "a.py"
    if change == "write":
        seen = file.stat()
        file.write_text("x")
        os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    elif change == "touch":
        os.utime(file)
    elif change == "make":
        (tmp_path / "c.py").touch()
    elif change == "remove":
        file.unlink()
    elif change == "mode":
        file.chmod(0o600)
    else:
        file.unlink()
        file.symlink_to("b.py")
    assert survey(tmp_path).digest != before


def test_directories_of_tests_and_fixtures_are_protected_whole_and_others_by_file(tmp_path: Path) -> None:
    found = rules(
        tmp_path, "tests/unit/test_a.py", "tests/helper.py", "pkg/test/client.py", "pkg/test_b.py", "pkg/fixtures/f.json",
        "pyproject.toml", "pkg/c.py", "lib/tests/conftest.py", "lib/tests/data.txt",
    )  # fmt: skip
    assert found.directories == ("lib/tests", "pkg/fixtures", "tests")
    assert found.mounted == ("lib/tests", "pkg/fixtures", "tests", "pkg/test_b.py", "pyproject.toml")
    assert [path for path in ("pkg/c.py", "pkg/test/client.py", "pkg/new.py", "test_new.py") if found.why_protected(path)] == []
    for path in (
        "tests/helper.py",
        "tests/unit/test_a.py",
        "pkg/test_b.py",
        "pkg/fixtures/new.json",
        "a/conftest.py",
        "x/y.pth",
        "m.so",
    ):
        assert found.why_protected(path), path
    assert not found.why_protected("tests/unit/test_new.py")


def test_patterns_protect_more_and_environments_are_nobodys_to_change(tmp_path: Path) -> None:
    found = rules(tmp_path, "docs/a.md", "golden/x/y.txt", "a.snap", "env/pyvenv.cfg", patterns=("golden", "*.snap"))
    assert found.mounted == ("golden", "a.snap")
    assert "environment" in found.why_protected("env/lib/new.py")
    assert not found.why_protected("docs/a.md")


@pytest.mark.parametrize(
    ("source", "sign"),
    [
        ("from _pytest.runner import runtestprotocol\n", "imports _pytest.runner"),
        ("import pluggy._hooks\n", "imports pluggy._hooks"),
        ("import importlib\nimportlib.import_module('_pytest.reports')\n", "speaks of '_pytest.reports'"),
        ("import sys\nIS = 'pytest' in sys.modules\n", "speaks of 'pytest'"),
        ("class A:\n    def __ne__(self, other):\n        return False\n", "__ne__"),
    ],
)
def test_an_edit_that_has_to_do_with_the_test_framework_shows_it(source: str, sign: str) -> None:
    assert sign in "".join(text_signs("pkg/a.py", "x = 1\n", source))
    assert sign in "".join(text_signs("pkg/a.py", None, source))
    assert list(text_signs("pkg/a.py", source, source + "y = 2\n")) == []
    assert list(text_signs("pkg/test_a.py", None, source)) == []


def test_mentioning_pytest_in_a_sentence_is_no_sign() -> None:
    assert (
        list(text_signs("a.py", None, '"""Run pytest to test this."""\ndef __eq__(self, other):\n    return self.x == other.x\n'))
        == []
    )


def test_links_binaries_and_large_files_are_not_edited(tmp_path: Path) -> None:
    make(tmp_path, "a.py", "d/b.py")
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    (tmp_path / "zero.txt").write_bytes(b"a\0b")
    (tmp_path / "large.txt").write_bytes(b"x" * 3_000_000)
    os.mkfifo(tmp_path / "pipe")
    assert (read_text(tmp_path, "a.py"), read_text(tmp_path, "no/such"), read_text(tmp_path, "a.py/b")) == ("", None, None)
    said = {}
    for path in ("link/b.py", "link", "latin.txt", "zero.txt", "large.txt", "d", "pipe"):
        with pytest.raises(Rejected) as caught:
            read_text(tmp_path, path)
        said[path] = caught.value.rejection.message
    assert "link is a symbolic link" in said["link/b.py"]
    assert "not text in UTF-8" in said["latin.txt"]
    assert "3000000 bytes" in said["large.txt"]
    assert "is not a file" in said["pipe"]


@pytest.mark.parametrize(
    ("text", "mode", "arguments"),
    [
        ("pytest -k 'a b'", "script", ["-k", "a b"]),
        ("/venv/bin/pytest", "script", []),
        ("A=1 python3.12 -m pytest tests", "module", ["tests"]),
        ("python -m unittest", "command", []),
        ("make test", "command", []),
    ],
)
def test_a_command_is_pytest_or_another_one(text: str, mode: str, arguments: list[str]) -> None:
    command = parse_command(text)
    assert (command.mode, command.arguments) == (mode, arguments)


@pytest.mark.parametrize("text", ["", "A=1", "pytest '", "PATH=/x pytest", "PYTHONHOME=/x pytest", "LD_LIBRARY_PATH=x pytest"])
def test_a_command_that_cannot_be_run_as_it_is_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_command(text)


def test_what_is_assigned_before_a_command_is_its_environment() -> None:
    command = parse_command("A='b c' PYTHONPATH=src:lib pytest")
    assert (command.environment, command.path) == ({"A": "b c"}, "src:lib")
    assert parse_command("PYTHONPATH=src make").environment == {"PYTHONPATH": "src"}


def test_an_interpreter_that_boxes_would_not_see_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "project/a.py", "env/bin/python", "env/pyvenv.cfg")
    (tmp_path / "env/bin/python").chmod(0o755)
    if str(tmp_path).startswith("/tmp/"):
        with pytest.raises(BadRequest, match="interpreter must lie elsewhere"):
            find_interpreter(str(tmp_path / "env"), tmp_path / "project")
    assert find_interpreter(str(tmp_path / "env"), tmp_path).places == (str(tmp_path / "env"),)


@pytest.mark.parametrize("place", ["/", "/tmp", "/usr/lib", "/proc/self", "relative"])
def test_what_is_no_project_is_refused(place: str) -> None:
    if place == "/usr/lib":
        assert check_directory(place) == Path(place)
        return
    with pytest.raises(BadRequest):
        check_directory(place)


def result(*frames: Any, **fields: Any) -> BoxResult:
    return BoxResult(ending="exit", exit_code=0, frames=frames, **fields)


PASSED = {"test": "t.py::a", "outcome": "passed", "seconds": 0.1, "message": ""}
FINISHED = {"finished": 0, "is_reporting": True, "plugins": [], "signs": []}
ENDED = {"ended": 0, "tampering": [], "is_forged": False}
SELECTED = {"selected": ["t.py::a", "t.py::b"]}


@pytest.mark.parametrize(
    ("frames", "outcome", "said"),
    [
        ([PASSED, FINISHED, ENDED], "passed", ""),
        ([PASSED, ENDED], "error", "ended before pytest had finished (exit status 0)"),
        ([PASSED, FINISHED], "error", "the process that watches the tests was ended"),
        ([FINISHED, ENDED], "error", "selects no test"),
        ([SELECTED, PASSED, FINISHED, ENDED], "failed", "t.py::b"),
        ([PASSED | {"outcome": "failed"}, PASSED, FINISHED, ENDED], "tampered", "all passed, but tests reported failures"),
        ([PASSED, FINISHED | {"finished": 1}, ENDED], "tampered", "finished with status 1, but its process with exit status 0"),
        (
            [PASSED, FINISHED | {"finished": 1}, ENDED | {"ended": 1}],
            "failed",
            "every test passed, but pytest ended with status 1",
        ),
        ([PASSED, FINISHED | {"is_reporting": False}, ENDED], "tampered", "the reporter was taken out"),
        ([PASSED | {"outcome": "skipped"}, FINISHED, ENDED], "error", "all 1 tests were skipped"),
        ([{"absent": "No module named 'pytest'"}, ENDED | {"ended": 4}], "error", "has no pytest: No module named"),
        ([{"started": "t.py::a"}, ENDED | {"ended": -11}], "error", "(SIGSEGV) during t.py::a"),
    ],
)
def test_a_run_is_judged_by_all_that_was_heard_together(frames: list[Any], outcome: str, said: str) -> None:
    run = conclude(result(*frames), hears_tests=True)
    assert (run.outcome, said in run.message) == (outcome, True), run.message


@pytest.mark.parametrize("frame", [7, None, {"test": 1}, {"unknown": ""}, {"outcome": "great", "test": "a"}, PASSED])
def test_words_that_no_reporter_says_are_signs_of_interference(frame: Any) -> None:
    frames = (PASSED, FINISHED, ENDED, frame) if frame == PASSED else (frame, FINISHED, ENDED)
    assert conclude(result(*frames), hears_tests=True).signs


def test_half_surrogates_from_a_box_do_not_travel_on() -> None:
    run = conclude(result(PASSED | {"message": "\ud800", "test": "a\udfff"}, FINISHED, ENDED), hears_tests=True)
    assert (run.cases[0].name, run.cases[0].message) == ("a?", "?")


def run(*cases: tuple[str, CaseOutcome], uncollected: tuple[str, ...] = (), **fields: Any) -> ProjectRun:
    bad = uncollected or any(outcome not in ("passed", "skipped") for _, outcome in cases)
    facts: dict[str, Any] = {"outcome": "failed" if bad else "passed"} | fields
    return ProjectRun(
        cases=tuple(CaseResult(name=name, outcome=outcome) for name, outcome in cases),
        uncollected=tuple(CaseResult(name=name, outcome="error", message="why") for name in uncollected),
        **facts,
    )  # fmt: skip


def judge(before: ProjectRun, after: ProjectRun, *fail_to_pass: str) -> tuple[str, str]:
    facts = compare(before, after, fail_to_pass=fail_to_pass, signs=())
    return facts["outcome"], facts["message"]


BEFORE = run(("t.py::a", "failed"), ("t.py::b", "passed"), ("t.py::c[1]", "failed"), ("t.py::c[2]", "failed"))
ALL = [("t.py::a", "passed"), ("t.py::b", "passed"), ("t.py::c[1]", "passed"), ("t.py::c[2]", "passed")]


def with_case(name: str, outcome: CaseOutcome) -> ProjectRun:
    return run(*[(known, outcome if known == name else "passed") for known, _ in ALL])


def test_all_that_failed_must_pass_and_all_that_passed_must_still() -> None:
    assert judge(BEFORE, run(*ALL)) == ("passed", "")  # type: ignore[arg-type]
    for name in ("t.py::a", "t.py::c[2]"):
        for outcome in ("failed", "error", "skipped"):
            assert judge(BEFORE, with_case(name, outcome)) == ("failed", f"still failing: {name}")
    for outcome in ("failed", "error", "skipped"):
        assert judge(BEFORE, with_case("t.py::b", outcome)) == ("failed", "broken by the edit: t.py::b")  # type: ignore[arg-type]
    assert judge(BEFORE, run(*[case for case in ALL if case[0] != "t.py::b"])) == ("failed", "broken by the edit: t.py::b")  # type: ignore[arg-type]


def test_a_given_node_stands_for_all_below_it() -> None:
    after = run(("t.py::a", "failed"), ("t.py::b", "passed"), ("t.py::c[1]", "passed"), ("t.py::c[2]", "passed"))
    assert judge(BEFORE, after, "t.py::c") == ("passed", "")
    assert judge(BEFORE, after, "t.py") == ("failed", "still failing: t.py")
    assert judge(BEFORE, after, "t.py::c", "t.py::gone") == ("failed", "still failing: t.py::gone")
    with pytest.raises(BadRequest, match=r"t\.py::b passes without the edit"):
        judge(BEFORE, after, "t.py::b")


def test_a_file_that_could_not_be_collected_passes_by_its_tests() -> None:
    before = run(("u.py::x", "passed"), uncollected=("t.py",))
    assert judge(before, run(("u.py::x", "passed"), ("t.py::a", "passed"))) == ("passed", "")
    assert judge(before, run(("u.py::x", "passed"), ("t.py::a", "failed"))) == ("failed", "still failing: t.py")
    assert judge(before, run(("u.py::x", "passed"))) == ("failed", "still failing: t.py")
    assert judge(before, before) == ("failed", "still failing: t.py")
    gone = judge(run(("t.py::a", "passed")), run(("u.py::x", "passed"), uncollected=("t.py",)))
    assert gone == ("failed", "broken by the edit: t.py::a, t.py")


def test_where_nothing_failed_before_that_is_said() -> None:
    assert judge(run(("t.py::a", "passed")), run(("t.py::a", "passed"))) == ("passed", NOTHING_FAILED)


def test_what_the_project_does_by_itself_is_nobodys_tampering() -> None:
    before, after = (run(*ALL, signs=("json.dumps was replaced",), plugins=("p (x)",)) for _ in range(2))  # type: ignore[arg-type]
    assert judge(before, after)[0] == "passed"
    assert judge(run(*ALL), after) == ("tampered", "json.dumps was replaced")  # type: ignore[arg-type]


def test_a_run_that_broke_off_is_what_ended_it() -> None:
    after = run(("t.py::b", "passed"), outcome="timeout", limit="wall", message="too long")
    assert judge(BEFORE, after) == ("timeout", "too long")


def test_of_exit_statuses_it_is_said_that_they_are_all_that_is_known() -> None:
    done, failed = ProjectRun(outcome="completed"), ProjectRun(outcome="failed", message="status 1")
    assert compare_status(failed, done, signs=()) == {"evidence": "exit_status", "outcome": "passed", "message": ""}
    assert compare_status(done, done, signs=())["message"] == SUCCEEDED_BEFORE
    assert compare_status(done, failed, signs=())["outcome"] == "failed"
    assert compare_status(done, done, signs=("x",))["outcome"] == "tampered"
