"""What tests of a project can see and touch: the project and its interpreter, and nothing that outlives them.

The probes run in boxes only; they look, and try to write what they must not be able to.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from atlas.errors import BadRequest, SandboxRefused
from atlas.sandbox.exec_boxes import ExecBoxes
from atlas.sandbox.inside import project_view
from atlas.sandbox.native import NativeBoxes
from atlas.sandbox.project import Projects
from atlas.sandbox.project_files import survey
from atlas.types import ProjectCheck, RunLimits
from tests.sandbox.as_user import REPOSITORY, run_tests_as_user

TESTS = "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 pytest -s"
EDIT = "thing.py\n```\nVALUE = 2\n```\n"
BASE = Path(sys.executable).resolve()
LIMITS = RunLimits(wall_s=60.0, cpu_s=60.0, memory_bytes=1 << 30, processes=64, disk_bytes=32 << 20)
PROLOGUE = """\
import json, os, socket, sys
from pathlib import Path

from thing import VALUE

HERE = Path(__file__).parents[1]

def attempt(function, *arguments):
    try:
        return str(function(*arguments))
    except OSError as error:
        return type(error).__name__ + ' ' + str(error.errno)

def write(path):
    return attempt((HERE / path).write_text, 'x')

def names(path):
    return sorted(os.listdir(path))
"""


@pytest.fixture
async def projects() -> AsyncIterator[Projects]:
    boxes = NativeBoxes(python=sys.executable, uid=64321, slots=2)
    await boxes.start()
    yield Projects(boxes)
    await boxes.close()


def make_project(directory: Path, probe: str) -> Path:
    """A project whose only test evaluates `probe`, prints what it is as JSON, and fails until VALUE is 2."""
    project = directory / "project"
    test = f"{PROLOGUE}\ndef test_it():\n    print('SEEN', json.dumps({probe}))\n    assert VALUE == 2\n"
    files = {
        "tests/test_it.py": test,
        "tests/conftest.py": "",
        "data/d.txt": "d",
        "thing.py": "VALUE = 1\n",
        "pyproject.toml": "[tool.pytest.ini_options]\npythonpath = ['.']\n",
        ".git/answer": "secret",
        ".venv/pyvenv.cfg": f"home = {BASE.parent}\n",
        ".venv/lib/m.py": "",
    }
    for path, text in files.items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text(text)
    (project / "link").symlink_to("thing.py")
    return project


def check(project: Path, **options: Any) -> ProjectCheck:
    facts: dict[str, Any] = {"python": sys.executable, "tests": TESTS, "limits": LIMITS} | options
    return ProjectCheck(directory=str(project), edit=EDIT, **facts)


async def see(projects: Projects, directory: Path, probe: str) -> Any:
    """What the probe saw in the box, with the edit applied."""
    project = make_project(directory, probe)
    before = survey(project).digest
    verdict = await projects.check(check(project))
    assert verdict.passed, (verdict.message, verdict.after)
    assert survey(project).digest == before
    assert verdict.after is not None
    return json.JSONDecoder().raw_decode(verdict.after.stdout.partition("SEEN ")[2])[0]


async def test_what_tests_write_stays_in_their_box(projects: Projects, tmp_path: Path) -> None:
    probe = """[write('new.txt'), write('data/d.txt'), write('data/new.txt'), (HERE / 'data/d.txt').read_text(),
        attempt(os.unlink, HERE / 'link')]"""
    assert await see(projects, tmp_path, probe) == ["1", "1", "1", "x", "None"]


async def test_tests_configuration_and_environment_cannot_be_written(projects: Projects, tmp_path: Path) -> None:
    probe = """{path: write(path) for path in ('tests/conftest.py', 'tests/test_it.py', 'tests/new.py', 'pyproject.toml',
        '.venv/lib/m.py', '.venv/new', '.git/new')} | {'rename': attempt(os.rename, HERE / 'tests', HERE / 'elsewhere'),
        'unlink': attempt(os.unlink, HERE / 'pyproject.toml')}"""
    seen = await see(projects, tmp_path, probe)
    assert {path for path, error in seen.items() if error != "OSError 30"} == {"rename", "unlink"}
    assert (seen["rename"], seen["unlink"]) == ("OSError 16", "OSError 16")


async def test_history_is_hidden_and_so_is_what_lies_beside_the_project(projects: Projects, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden")
    probe = """{'history': names(HERE / '.git'), 'beside': names(HERE.parent), 'box': names('/box/project'),
        'home': attempt(os.listdir, '/home')}"""
    seen = await see(projects, tmp_path, probe)
    assert (seen["history"], seen["beside"], seen["box"]) == ([], ["project"], [])
    assert seen["home"] == "FileNotFoundError 2"


async def test_nothing_is_inherited_and_nobody_is_reached(
    projects: Projects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--collect-only")
    monkeypatch.setenv("ATLAS_SECRET", "hidden")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    probe = """{'environment': sorted(os.environ), 'net': attempt(socket.create_connection, ('192.0.2.1', 80), 1),
        'who': os.getuid(), 'cwd': os.getcwd() == str(HERE),
        'caps': Path('/proc/self/status').read_text().split('CapEff:')[1].split()[0],
        'parent': attempt(os.listdir, '/proc/%d/fd' % os.getppid())}"""
    seen = await see(projects, tmp_path, probe)
    allowed = {"HOME", "LANG", "LC_CTYPE", "OMP_NUM_THREADS", "PATH", "PYTEST_CURRENT_TEST", "PYTEST_DISABLE_PLUGIN_AUTOLOAD",
               "PYTEST_VERSION", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE", "VIRTUAL_ENV"}  # fmt: skip
    assert set(seen["environment"]) <= allowed
    assert seen["net"].startswith(("OSError 101", "TimeoutError"))
    assert (seen["who"], seen["cwd"], seen["caps"]) == (1000, True, "0" * 16)
    assert seen["parent"].startswith(("PermissionError", "FileNotFoundError"))


async def test_a_project_may_bring_its_environment_and_name_other_places(projects: Projects, tmp_path: Path) -> None:
    """A virtual environment inside the project, at the paths it was made with; by default it is the interpreter."""
    place = REPOSITORY / "examples" / "rolling-mean.diff"
    project = make_project(tmp_path, f"[sys.prefix, Path({str(place)!r}).exists()]")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    library = project / ".venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    library.mkdir(parents=True)
    (library / "more.pth").write_text(packages)
    (project / ".venv" / "bin").mkdir()
    (project / ".venv" / "bin" / "python").symlink_to(BASE)
    verdict = await projects.check(check(project, python="", read_only=(packages, str(place))))
    assert verdict.passed, (verdict.message, verdict.after)
    assert verdict.after is not None
    assert f'["{project}/.venv", true]' in verdict.after.stdout


async def test_a_run_without_the_edit_is_made_once_and_again_when_the_project_changes(projects: Projects, tmp_path: Path) -> None:
    project = make_project(tmp_path, "1")
    first, second = await projects.check(check(project)), await projects.check(check(project))
    assert (first.passed, second.passed, first.before) == (True, True, second.before)
    (project / "thing.py").write_text("VALUE = 3\n")
    third = await projects.check(check(project))
    assert (third.passed, third.before != first.before) == (True, True)


async def test_what_turns_out_to_hold_tests_or_to_help_them_is_protected_too(projects: Projects, tmp_path: Path) -> None:
    """Tests of another name, and a plugin that the conftest names."""
    project = make_project(tmp_path, "1")
    (project / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\npythonpath = ['.']\npython_files = ['check_*.py', 'test_*.py']\n"
    )
    (project / "check_more.py").write_text("def test_more():\n    assert True\n")
    (project / "help.py").write_text("def pytest_report_header():\n    return 'helped'\n")
    (project / "conftest.py").write_text("pytest_plugins = ['help']\n")
    for path, why in (("check_more.py", "the tests rest on it"), ("help.py", "the tests rest on it")):
        verdict = await projects.check(replace(check(project), edit=f"{path}\n```\nx = 1\n```\n"))
        assert (verdict.outcome, why in verdict.message) == ("tampered", True), verdict.message
    verdict = await projects.check(check(project))
    assert (verdict.passed, verdict.num_pass_to_pass) == (True, 1)


async def test_a_project_that_changes_while_it_is_checked_is_not_judged(projects: Projects, tmp_path: Path) -> None:
    project = make_project(tmp_path, "1")
    await projects.check(check(project))  # from here on only the run with the edit is made
    original = projects._run

    async def run(*arguments: Any) -> Any:
        (project / "data" / "d.txt").write_text("changed")
        return await original(*arguments)

    projects._run = run  # type: ignore[method-assign, assignment]
    with pytest.raises(BadRequest, match="was changed while it was checked"):
        await projects.check(check(project))


async def test_tiers_that_cannot_show_a_project_refuse_by_name(tmp_path: Path) -> None:
    boxes = ExecBoxes(tier="none", python=sys.executable, uid=64321, slots=1)
    with pytest.raises(SandboxRefused, match="in the native tier only; this machine has none"):
        await Projects(boxes).check(check(tmp_path))


def test_where_there_is_no_overlay_all_but_history_and_environment_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path, "1")
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o555)
    target = tmp_path / "copy"
    target.mkdir()
    monkeypatch.setattr(project_view, "LOWER", str(project))
    project_view._copy(str(target), {".git", ".venv"})
    names = [".git", ".venv", "data", "link", "pyproject.toml", "run.sh", "tests", "thing.py"]
    assert sorted(path.name for path in target.iterdir()) == names
    assert (list((target / ".git").iterdir()), list((target / ".venv").iterdir())) == ([], [])
    assert (target / "link").readlink() == Path("thing.py")
    assert (target / "data" / "d.txt").read_text() == "d"
    assert (target / "run.sh").stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.getuid() != 0, reason="they are run as an ordinary user already")
def test_an_ordinary_user_sees_the_same() -> None:
    """Their own projects as they are, and those of others, like the shipped example here, in copy."""
    files = ("tests/sandbox/test_project_view.py", "tests/sandbox/test_project.py")
    output = run_tests_as_user(*files, "-k", "view or right_edit", timeout_s=170)
    assert " passed" in output
