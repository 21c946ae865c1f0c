"""Project mode on the shipped example: wrong edits are rejected or fail by name, the right one passes, tampering is caught.

What attacks here runs in boxes only.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from atlas.errors import BadRequest
from atlas.sandbox.native import NativeBoxes
from atlas.sandbox.project import Projects
from atlas.sandbox.project_files import survey
from atlas.types import ProjectCheck, ProjectVerdict, RunLimits

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = Path(__file__).parents[2] / "examples"
PROJECT = EXAMPLES / "project"
RIGHT = (EXAMPLES / "rolling-mean.diff").read_text()
SERIES = "src/almanac/series.py"
BROKEN = (PROJECT / SERIES).read_text()
# The interpreter of this suite has a dozen plugins, which take seconds to load and have no business here.
TESTS = "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 pytest"
NUMBER = BROKEN.splitlines().index("    return sums / window") + 1
MENDED = """\
    counts = np.convolve(~np.isnan(values), np.ones(window))[: len(values)]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
"""
WINDOW, JUNE = (
    "tests/test_series.py::test_a_window_that_is_not_full_yet_averages_what_it_has",
    "tests/test_report.py::test_june_is_reported",
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def projects() -> AsyncIterator[Projects]:
    boxes = NativeBoxes(python=sys.executable, uid=64321, slots=2)
    await boxes.start()
    yield Projects(boxes)
    await boxes.close()


def check(edit: str, **options: object) -> ProjectCheck:
    known = ProjectCheck(directory=str(PROJECT), edit=edit, tests=TESTS, python=sys.executable)
    return replace(known, **options)


def block(search: str, replacement: str, path: str = SERIES) -> str:
    return f"{path}\n<<<<<<< SEARCH\n{search}=======\n{replacement}>>>>>>> REPLACE\n"


def solution(prelude: str = "", body: str = "    return sums / window\n") -> str:
    """The whole of series.py: with lines before it, and another end of the function."""
    text = BROKEN.replace("    return sums / window\n", body).replace("import numpy as np\n", "import numpy as np\n" + prelude, 1)
    return f"{SERIES}\n```python\n{text}```\n"


def names(verdict: ProjectVerdict) -> tuple[list[str], list[str]]:
    return [case.name for case in verdict.fail_to_pass], [case.name for case in verdict.broken]


@pytest.mark.parametrize("edit", [RIGHT, block("    return sums / window\n", MENDED), solution(body=MENDED)])
async def test_the_right_edit_is_verified_in_every_form(projects: Projects, edit: str) -> None:
    before = survey(PROJECT).digest
    verdict = await projects.check(check(edit))
    assert (verdict.outcome, verdict.message, verdict.tampering) == ("passed", "", ())
    assert (sorted(names(verdict)[0]), names(verdict)[1]) == ([JUNE, WINDOW], [])
    assert all(case.outcome == "passed" for case in verdict.fail_to_pass)
    assert (verdict.num_pass_to_pass, verdict.sealed, verdict.evidence, verdict.tier) == (10, False, "tests", "native")
    assert verdict.diff.startswith(f"diff --git a/{SERIES} b/{SERIES}\n--- a/{SERIES}\n+++ b/{SERIES}\n@@ ")
    assert survey(PROJECT).digest == before


async def test_python_m_pytest_and_a_selection_of_tests_are_heard_too(projects: Projects) -> None:
    verdict = await projects.check(check(RIGHT, tests="PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -x -k 'window'"))
    assert (verdict.outcome, names(verdict)[0], verdict.num_pass_to_pass) == ("passed", [WINDOW], 3)


async def test_of_another_command_the_exit_status_counts_and_that_is_said(projects: Projects) -> None:
    program = "from almanac.series import *; assert rolling_mean(np.ones(3), 3)[1] == 1"
    command = f'PYTHONPATH=src python -c "{program}"'
    verdict = await projects.check(check(RIGHT, tests=command))
    assert (verdict.outcome, verdict.evidence, verdict.fail_to_pass) == ("passed", "exit_status", ())
    wrong = await projects.check(check(block("    return sums / window\n", "    return sums\n"), tests=command))
    assert (wrong.outcome, wrong.message) == ("failed", "the command ended with exit status 1")


@pytest.mark.parametrize(
    ("edit", "fault", "said"),
    [
        ("Divide by the days that were measured.", "malformed", "no edit"),
        (block("    return sums / windows\n", MENDED), "not_found", f"{NUMBER} |     return sums / window"),
        (block("    return sums / window\n", MENDED, "src/almanac/serie.py"), "missing", "src/almanac/serie.py, block 1"),
        (RIGHT.replace("-    return sums / window", "-    return sums / days"), "not_found", f"{SERIES}, hunk 1"),
        (block("import numpy as np\n", "import numpy as np\n"), "unchanged", "as it is"),
    ],
)
async def test_a_wrong_edit_is_rejected_with_a_reason_and_nothing_is_run(
    projects: Projects, edit: str, fault: str, said: str
) -> None:
    verdict = await projects.check(check(edit))
    assert verdict.rejection is not None
    assert (verdict.outcome, verdict.rejection.fault, verdict.after) == ("error", fault, None)
    assert said in verdict.message


async def test_an_edit_that_mends_nothing_is_still_failing(projects: Projects) -> None:
    verdict = await projects.check(check(block("    return sums / window\n", "    return sums / float(window)\n")))
    assert (verdict.outcome, verdict.broken) == ("failed", ())
    assert verdict.message.startswith("still failing: tests/test_")
    assert "2.0" in next(case.message for case in verdict.fail_to_pass if case.name == WINDOW)


async def test_an_edit_that_mends_one_thing_and_breaks_another_is_not_verified(projects: Projects) -> None:
    edit = solution(body=MENDED).replace("np.nanargmax", "np.argmax")
    verdict = await projects.check(check(edit))
    assert verdict.outcome == "failed"
    assert all(case.outcome == "passed" for case in verdict.fail_to_pass if case.name == WINDOW)
    broken = "tests/test_series.py::test_the_warmest_day_is_one_that_was_measured"
    assert broken in names(verdict)[1]
    assert verdict.message.startswith("broken by the edit: ")


async def test_tests_that_are_not_there_any_more_are_errors(projects: Projects) -> None:
    verdict = await projects.check(check(block("def warmest(values: Series)", "def warmst(values: Series)")))
    assert verdict.rejection is not None  # the line is `def warmest(values: Series) -> int:`
    verdict = await projects.check(check(block("def warmest(values: Series) -> int:\n", "def warmst(values: Series) -> int:\n")))
    assert (verdict.outcome, len(verdict.broken)) == ("error", 10)
    assert verdict.message == "pytest could not begin (exit status 4); see its output"


async def test_what_cannot_be_collected_any_more_is_named(projects: Projects) -> None:
    edit = block(
        "def rolling_mean(values: Series, window: int) -> Series:\n", "def rolling(values: Series, window: int) -> Series:\n"
    )
    imported = "from almanac.series import celsius, {}, warmest\n"
    edit += block(imported.format("rolling_mean"), imported.format("rolling as rolling_mean"), "src/almanac/report.py")
    verdict = await projects.check(check(edit))
    assert verdict.after is not None
    assert (verdict.outcome, [case.name for case in verdict.after.uncollected]) == ("failed", ["tests/test_series.py"])
    gone = next(case for case in verdict.broken if case.name.endswith("test_a_full_window_is_averaged"))
    assert (gone.outcome, "cannot import name 'rolling_mean'" in gone.message) == ("error", True)


async def test_only_the_tests_that_were_asked_for_have_to_pass(projects: Projects) -> None:
    edit = solution(body="    return sums / window if window != 3 or len(values) != 4 else np.array([2.0, 3.0, 3.0, 5.0])\n")
    verdict = await projects.check(check(edit, fail_to_pass=(WINDOW,)))
    assert (verdict.outcome, names(verdict)) == ("passed", ([WINDOW], []))
    both = await projects.check(check(edit, fail_to_pass=(WINDOW, "tests/test_report.py")))
    assert (both.outcome, both.message) == ("failed", "still failing: tests/test_report.py")


async def test_what_passes_without_the_edit_cannot_be_asked_for(projects: Projects) -> None:
    with pytest.raises(BadRequest, match="passes without the edit"):
        await projects.check(check(RIGHT, fail_to_pass=("tests/test_readings.py",)))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("tests/conftest.py", "decides how the tests are run"),
        ("conftest.py", "decides how the tests are run"),
        ("src/conftest.py", "decides how the tests are run"),
        ("pytest.ini", "decides how the tests are run"),
        ("pyproject.toml", "decides how the tests are run"),
        ("src/sitecustomize.py", "decides how the tests are run"),
        ("src/evil.pth", "decides how the tests are run"),
        ("tests/test_series.py", "the tests rest on it"),
        ("tests/fixtures/june.txt", "the tests rest on it"),
        ("tests/__init__.py", "only new test files"),
        ("tests/fixtures/more.txt", "only new test files"),
        ("../outside.py", "leads out of the project"),
        (".git/hooks/post-checkout", "history is not edited"),
    ],
)
async def test_what_the_verdict_rests_on_is_not_the_candidates_to_change(projects: Projects, path: str, why: str) -> None:
    verdict = await projects.check(check(f"{path}\n```\nchanged = True\n```\n"))
    assert (verdict.outcome, verdict.after) == ("tampered", None)
    assert why in verdict.message
    assert verdict.tampering == (verdict.message,)


async def test_a_new_test_may_be_added_and_must_pass(projects: Projects) -> None:
    edit = solution(body=MENDED) + "tests/test_more.py\n```\ndef test_more() -> None:\n    assert True\n```\n"
    verdict = await projects.check(check(edit))
    assert verdict.outcome == "passed"
    verdict = await projects.check(check(edit.replace("assert True", "assert False")))
    assert (verdict.outcome, verdict.message) == ("failed", "broken by the edit: tests/test_more.py::test_more")


CALL = """
import sys
def nothing(item): pass
sys.modules['_py' + 'test.runner'].pytest_runtest_call.__code__ = nothing.__code__
"""
REPORT = """
import sys
Report = sys.modules['_py' + 'test.reports'].TestReport
make = Report.from_item_and_call.__func__
def forge(cls, item, call):
    call.excinfo = None
    return make(cls, item, call)
Report.from_item_and_call = classmethod(forge)
"""
MANAGER = """
import gc
managers = [found for found in gc.get_objects() if type(found).__name__ == 'PytestPluginManager']
"""
SILENCE = f"""{MANAGER}
for manager in managers:
    for _, plugin in manager.list_name_plugin():
        if type(plugin).__name__ == 'Reporter':
            manager.unregister(plugin)
"""
PLUGIN = f"""{MANAGER}
class Helpful: pass
managers[0].register(Helpful())
"""
WRITE = """
import os
for descriptor in range(3, 64):
    try: os.write(descriptor, b'\\0\\0\\0\\x02[]')
    except OSError: pass
"""
CHEATS = {
    "imports pytest": ("import pytest\n", "the edit imports pytest"),
    "looks whether it is tested": (
        "import os\nTESTED = 'PYTEST_CURRENT_TEST' in os.environ\n",
        "speaks of 'PYTEST_CURRENT_TEST'",
    ),
    "is equal to everything": ("class Any:\n    def __eq__(self, other):\n        return True\n", "__eq__ that says the same"),
    "replaces how a test is called": (CALL, "_pytest.runner.pytest_runtest_call was replaced"),
    "replaces how a report is made": (REPORT, "_pytest.reports.TestReport.from_item_and_call was replaced"),
    "replaces a builtin": ("import builtins\nbuiltins.AssertionError = ValueError\n", "builtins.AssertionError was replaced"),
    "takes the reporter out": (SILENCE, "series.py called gc.get_objects"),
    "brings a plugin": (PLUGIN, "pytest had a plugin that it has not without the edit: Helpful"),
    "writes to every descriptor": (WRITE, "somebody else wrote to the reporter's descriptor"),
    "ends with status 0 at exit": (
        "import atexit, os\natexit.register(os._exit, 0)\n",
        "finished with status 1, but its process",
    ),
    "makes a conftest": ("from pathlib import Path\nPath('conftest.py').touch()\n", "conftest.py was made while the tests ran"),
    "makes an ini file": (
        "from pathlib import Path\nPath('src/pytest.ini').touch()\n",
        "src/pytest.ini was made while the tests",
    ),
}


@pytest.mark.parametrize("name", CHEATS)
async def test_tampering_is_caught_by_name(projects: Projects, name: str) -> None:
    prelude, said = CHEATS[name]
    verdict = await projects.check(check(solution(prelude)))
    assert verdict.outcome == "tampered", verdict.message
    assert any(said in sign for sign in verdict.tampering), verdict.tampering


ENDS = {
    "leaves at import": ("import os\nos._exit(0)\n", "error", "ended before pytest had finished (exit status 0)"),
    "exits at import": ("import sys\nsys.exit(0)\n", "error", ""),
    "ends the watching process": ("import os\nos.kill(os.getppid(), 9)\n", "killed", ""),
    "does not compile": ("def f(:\n", "error", "pytest could not begin"),
}


@pytest.mark.parametrize("name", ENDS)
async def test_what_ends_the_tests_early_is_an_error_and_never_a_pass(projects: Projects, name: str) -> None:
    prelude, outcome, said = ENDS[name]
    verdict = await projects.check(check(solution(prelude, MENDED)))
    assert verdict.outcome == outcome, verdict.message
    assert said in verdict.message
    assert len(verdict.broken) == 10


async def test_a_skipped_test_does_not_pass(projects: Projects) -> None:
    body = "    import unittest\n    raise unittest.SkipTest('not today')\n"
    verdict = await projects.check(check(solution(body=body)))
    assert verdict.outcome == "failed"
    assert {case.outcome for case in verdict.fail_to_pass} == {"skipped"}


LIMITS = RunLimits(wall_s=6.0, cpu_s=60.0, memory_bytes=400 << 20, processes=64, output_bytes=1 << 20)
GREEDS = {
    "spins": ("    while True: pass\n", "timeout", "wall", f"the tests took too long during {JUNE}"),
    "grows": ("    x = np.ones(200_000_000)\n    return x\n", "memory_limit", "memory", f"used too much memory during {JUNE}"),
    "shouts": ("    import os\n    while True: os.write(1, b'x' * 65536)\n", "output_limit", None, ""),
    "crashes": ("    import ctypes\n    return ctypes.string_at(0)\n", "error", None, f"(SIGSEGV) during {JUNE}"),
}


@pytest.mark.parametrize("name", GREEDS)
async def test_a_limit_that_is_hit_is_named_with_the_test_that_was_running(projects: Projects, name: str) -> None:
    body, outcome, limit, said = GREEDS[name]
    tests = f"{TESTS} -s tests/test_report.py"
    verdict = await projects.check(check(solution(body=body), limits=LIMITS, tests=tests))
    assert verdict.after is not None
    assert (verdict.outcome, said in verdict.message) == (outcome, True), verdict.message
    assert limit is None or verdict.after.limit == limit


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tests": f"{TESTS} -k nothing_like_this"}, "say nothing without the edit: the command selects no test"),
        ({"tests": f"{TESTS} --no-such-option"}, "--no-such-option"),
        ({"tests": "no-such-command"}, "no-such-command: No such file"),
        ({"tests": "pytest 'unclosed"}, "cannot be read"),
        ({"tests": "LD_PRELOAD=x.so pytest"}, "must not set LD_PRELOAD"),
        ({"python": "/no/such/python"}, "is not a program"),
        ({"python": ""}, "has no .venv"),
        ({"directory": "/no/such/project"}, "is not a directory"),
        ({"directory": "/usr"}, "belongs to the system"),
    ],
)
async def test_what_the_user_got_wrong_is_said_and_is_no_verdict(projects: Projects, options: dict[str, str], said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await projects.check(check(RIGHT, **options))
    assert said in caught.value.message
