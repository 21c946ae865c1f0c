"""Changes to a project: candidates are edits, judged by the project's own tests in a real sandbox."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from atlas.errors import BadRequest
from atlas.ralph import issue_receipt, signing_key
from atlas.ralph.prompt import edit_block
from atlas.sandbox import Sandbox
from atlas.types import ProjectCheck, Request, RunStarted, Snippet
from tests.ralph.conftest import Scene, route

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = "def total(prices):\n    return sum(prices) + 1\n\n\ndef count(prices):\n    return len(prices)\n"
TESTS = """from shop import count, total


def test_total():
    assert total([1, 2]) == 3


def test_count():
    assert count([1]) == 1
"""
QUICK = "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 pytest -q"  # plugins take most of the time
RIGHT = edit_block("shop.py", "    return sum(prices) + 1", "    return sum(prices)")
WRONG = edit_block("shop.py", "    return sum(prices) + 1", "    return sum(prices) - 1")
BREAKS = edit_block("shop.py", "    return len(prices)", "    return 0")
NOWHERE = edit_block("shop.py", "    return min(prices)", "    return 0")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.py").write_text(SOURCE, "utf-8")
    (folder / "test_shop.py").write_text(TESTS, "utf-8")
    return folder


def asked(project: Path, **fields: object) -> Request:
    check = ProjectCheck(directory=str(project), edit="", python=str(Path(sys.prefix) / "bin" / "python"), tests=QUICK)
    wanted = {
        "task": "Its result is wrong by one.",
        "entry_point": "total",
        "context": (Snippet(path="shop.py", text=SOURCE),),
        "project": check,
        "route": route(),
    }
    return Request(**(wanted | fields))  # type: ignore[arg-type]  # the callers name fields of Request


def scene(sandbox: Sandbox, *replies: str) -> Scene:
    return Scene(sandbox.run, replies, check=sandbox.check_project)


async def test_an_edit_that_mends_what_failed_and_breaks_nothing_is_verified(sandbox: Sandbox, project: Path) -> None:
    made = scene(sandbox, RIGHT)
    run = await made.solve(asked(project))
    assert run.failure is None
    assert (run.verdict.status, run.verdict.source, run.verdict.sealed) == ("verified", "given", False)
    assert (run.verdict.tests_run, run.verdict.tests_passed, run.verdict.is_confirmed) == (2, 2, True)
    assert run.change is not None
    assert "-    return sum(prices) + 1" in run.change.diff
    assert run.change.changes == {"shop.py": SOURCE.replace(" + 1", "")}
    assert run.change.before is None
    assert (project / "shop.py").read_text("utf-8") == SOURCE
    assert "Rewrite the function total as one SEARCH/REPLACE block. Its result is wrong by one." in made.asked[0]
    started = made.events[0]
    assert isinstance(started, RunStarted)
    assert started.source == "given"


async def test_what_an_edit_failed_with_is_shown_to_the_model_and_repaired(sandbox: Sandbox, project: Path) -> None:
    made = scene(sandbox, NOWHERE, WRONG, RIGHT)
    run = await made.solve(asked(project))
    assert run.verdict.status == "verified"
    assert [attempt.candidates[0].state for attempt in run.attempts] == ["failed", "failed", "passed"]
    assert "shop.py" in made.asked[1]
    assert "return min(prices)" in made.asked[1]
    told = [candidate.failure.traceback for attempt in run.attempts for candidate in attempt.candidates if candidate.failure]
    assert "test_total" in told[1]


async def test_an_edit_that_breaks_another_test_has_failed(sandbox: Sandbox, project: Path) -> None:
    run = await scene(sandbox, RIGHT + "\n\n" + BREAKS).solve(asked(project, route=route(max_attempts=1)))
    assert run.verdict.status == "failed"
    candidate = run.attempts[0].candidates[0]
    assert candidate.execution is not None
    assert [case.name for case in candidate.execution.cases if case.outcome == "failed"] == ["test_shop.py::test_count"]


async def test_where_nothing_failed_before_nothing_is_proved(sandbox: Sandbox, project: Path) -> None:
    (project / "shop.py").write_text(SOURCE.replace(" + 1", ""), "utf-8")
    harmless = edit_block("shop.py", "    return len(prices)", "    return len(list(prices))")
    run = await scene(sandbox, harmless).solve(asked(project))
    assert run.verdict.status == "unchecked"
    assert run.change is not None
    assert run.change.passed
    assert "no test failed without the edit" in run.change.message


async def test_several_files_are_shown_with_the_form_of_the_answer(sandbox: Sandbox, project: Path) -> None:
    made = scene(sandbox, RIGHT)
    files = (Snippet(path="shop.py", text=SOURCE), Snippet(path="test_shop.py", text=TESTS))
    run = await made.solve(asked(project, entry_point="", context=files))
    assert run.verdict.status == "verified"
    assert "<<<<<<< SEARCH" in made.asked[0]
    assert "def test_total" in made.asked[0]


async def test_without_the_means_to_judge_it_is_our_failure(sandbox: Sandbox, project: Path) -> None:
    run = await Scene(sandbox.run, [RIGHT]).solve(asked(project))
    assert run.failure is not None
    assert run.failure.code == "sandbox_refused"
    assert run.verdict.status == "unchecked"


async def test_there_is_no_receipt_for_a_change_to_a_project(sandbox: Sandbox, project: Path) -> None:
    run = await scene(sandbox, RIGHT).solve(asked(project))
    with pytest.raises(BadRequest, match="no receipt for a change to a project"):
        issue_receipt(run, signing_key(lambda _, make: make()), issued_at=0.0)
