"""What ATLAS is measured beside has to grade rightly, or the comparison says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import graders
from benchmarks.graders import ColdPytest, WarmFork
from tests.bench.conftest import RIGHT, WRONG

TESTS = "assert f(1) == 2\nassert f(2) == 3"
BROKEN = "def f(x)\n    return x\n"
EXITS = "import os\nos._exit(1)\n"


def test_both_graders_find_the_candidate_that_passes(tmp_path: Path) -> None:
    with ColdPytest(tmp_path) as cold, WarmFork() as warm:
        for grader in (cold, warm):
            found = grader.grade([WRONG, BROKEN, EXITS, RIGHT, WRONG], TESTS)
            assert found.winner == 3
            assert 0 < found.first_s <= found.wall_s
            nothing = grader.grade([WRONG, "", EXITS], TESTS)
            assert (nothing.winner, nothing.first_s) == (None, nothing.wall_s)


def test_the_warm_grader_stops_at_the_first_that_passes() -> None:
    with WarmFork() as warm:
        assert warm.grade([RIGHT, "while True: pass"], TESTS).winner == 0


def test_what_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graders, "TIMEOUT_S", 2.0)
    with ColdPytest(tmp_path) as cold:
        assert cold.grade(["while True: pass"], TESTS).winner is None
