"""The shipped examples as a user tries them: `atlas solve` on a real server with a real model, and the dashboard beside it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from atlas.types import Run
from nano.judge import judge
from nano.suite import stronger
from nano.tasks import make_task, parse_program
from tests import ggufs
from tests.dashboard.site import PASSWORD, Person
from tests.dashboard.test_sandbox_page import text_of
from tests.e2e.conftest import KEY, Running

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "examples" / "project"
SERIES = "src/almanac/series.py"
TASKS = ROOT / "examples" / "tasks"
# Of 20 seeds all solved it, 15 in several attempts: these did. Floats differ between processors, so each may differ elsewhere.
SEEDS = (3, 5, 2, 6, 8)
ROWS = parse_program("rows > unique > add 6 > positive > reverse > min")  # what rows.txt says in words
SOLVE_LIMIT_S = 120

MENDED = f"""\
{SERIES}
```python
<<<<<<< SEARCH
    sums = np.convolve(np.nan_to_num(values), np.ones(window))[: len(values)]
    return sums / window
=======
    days = np.ones(window)
    sums = np.convolve(np.nan_to_num(values), days)[: len(values)]
    measured = np.convolve(~np.isnan(values), days)[: len(values)]
    return np.divide(sums, measured, out=np.full(len(values), np.nan), where=measured > 0)
>>>>>>> REPLACE
```
"""


def solve(server: Running, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ATLAS_")}
    return subprocess.run(
        [sys.executable, "-m", "atlas", "solve", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=SOLVE_LIMIT_S,
        check=False,
        env={**kept, "ATLAS_HOME": str(server.home), "ATLAS_API_KEY": KEY},
    )


class Solved(NamedTuple):
    """A task that took several attempts: what the terminal showed, and what the server has of it."""

    id: str
    told: list[str]
    code: str
    run: Run

    @property
    def tested(self) -> dict[str, str]:
        """State of each candidate that was run, by the name that people read: attempt and place."""
        found = [one for attempt in self.run.attempts for one in attempt.candidates if one.execution is not None]
        return {f"{one.ref.attempt}.{one.ref.index + 1}": one.state for one in found}


@pytest.fixture(scope="module")
def solved(nano: Running) -> Solved:
    """The shipped example, with the first of the seeds that needs a second attempt, as the documentation solves it."""
    tried = []
    for seed in SEEDS:
        files = [str(TASKS / "rows.txt"), "--tests", str(TASKS / "rows_tests.txt")]
        done = solve(nano, *files, "-k", "3", "--attempts", "8", "--seed", str(seed))
        newest = nano.get("/v1/tasks").json()["data"][0]["id"]
        run = msgspec.convert(nano.get(f"/v1/tasks/{newest}?full=true").json()["run"], Run)
        tried.append((seed, done.returncode, run.verdict.status, len(run.attempts)))
        if done.returncode == 0 and len(run.attempts) > 1:
            return Solved(newest, done.stderr.splitlines(), done.stdout, run)
    raise AssertionError(f"no seed needed several attempts and was solved: {tried}")


def test_nano_solves_a_shipped_task_in_several_attempts_and_the_terminal_says_why(solved: Solved) -> None:
    verdict, attempts = solved.run.verdict, solved.run.attempts
    assert (verdict.status, verdict.sealed, verdict.is_confirmed) == ("verified", True, True)
    assert (verdict.tests_run, verdict.tests_passed, verdict.num_held_back) == (6, 6, 2)
    assert solved.told[0] == "6 tests, 2 of them held back"
    assert solved.told[-1].startswith("verified: 6 of 6 given tests")
    begun = [line for line in solved.told if line.startswith("attempt ")]
    assert len(begun) == len(attempts)
    for number, (line, attempt) in enumerate(zip(begun, attempts, strict=True), 1):
        assert re.match(rf"attempt {number}: 3 candidates at temperature ", line), line
        assert attempt.reason
        assert line.endswith(f"({attempt.action}: {attempt.reason})"), line
    assert "passed" in solved.tested.values()
    assert "failed" in solved.tested.values()
    for name, state in solved.tested.items():
        [line] = [line for line in solved.told if line.startswith(f"  {name} ")]
        assert line.startswith(f"  {name} {state}, "), line
        assert state == "passed" or ": " in line, line  # what it showed


def test_the_code_that_is_found_is_right(solved: Solved) -> None:
    """By forty calls that nobody has shown."""
    assert judge(solved.code, "convert", list(stronger(make_task(ROWS, seed=1)))).passed


def test_the_dashboards_page_of_the_task_shows_the_same_attempts(nano: Running, solved: Solved) -> None:
    person = Person(nano.url)
    token = re.search(r"/setup\?token=(\S+)", nano.stderr.read_text())
    assert token, nano.stderr.read_text()
    form = {"token": token[1], "username": "ada", "email": "ada@example.org", "password": PASSWORD, "again": PASSWORD}
    assert person.http.post("/setup", data=form).status_code == 200
    shown = text_of(person.get(f"/tasks/{solved.id}").text)
    person.http.close()
    assert "verified: 6 of 6 given tests" in shown
    for attempt in solved.run.attempts:
        assert f"Attempt {attempt.number} {attempt.action} {attempt.reason}; temperature" in shown, shown
    assert f"Attempt {len(solved.run.attempts) + 1} " not in shown
    for name, state in solved.tested.items():
        assert f" {name} {state} " in shown, (name, state, shown)
    winner = solved.run.winner
    assert winner is not None
    assert re.search(rf" {winner.attempt}\.{winner.index + 1} passed \d+ of \d+[^.]* chosen ", shown), shown


def test_the_shipped_project_is_mended_by_what_a_real_model_file_says(serve: Callable[..., Running]) -> None:
    """The file is a chain of words whose weights say this edit; engine, worker, sandbox and the project's tests are real."""
    model = ggufs.scripted_gguf(ggufs.session_folder() / "mender.gguf", {"\n": MENDED}, context_tokens=8192)
    task = "Days that were not measured must not count."
    options = ["--project", str(PROJECT), "--name", "rolling_mean", "--python", sys.executable, "-k", "1", "--attempts", "1"]
    tests = ["--tests", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 pytest -q"]
    done = solve(serve(model), "-", *options, *tests, stdin=task)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"diff --git a/{SERIES} b/{SERIES}")
    assert "+    measured = np.convolve(~np.isnan(values), days)[: len(values)]\n" in done.stdout
    assert re.search(r"^attempt 1: 1 candidates", done.stderr, re.MULTILINE), done.stderr
    assert done.stderr.splitlines()[-1].startswith("verified: "), done.stderr
