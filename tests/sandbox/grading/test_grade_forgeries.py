"""No forgery passes where the verdict is sealed; where it is not, what is known to pass is listed here by name."""

from __future__ import annotations

import pytest

from atlas.types import Case, Execution, RunLimits
from tests.sandbox.grading.conftest import Grade
from tests.sandbox.grading.forgeries import AGAINST_CASES, AGAINST_INPUTS, AGAINST_TESTS

pytestmark = pytest.mark.asyncio(loop_scope="package")

LIMITS = RunLimits(wall_s=1.5)
HONEST = "def add(a, b): return a + b"
TESTS = """
from solution import add
def same(left, right): return left == right
def test_small():
    expected = 5
    assert add(2, 3) == 5
    assert same(add(2, 3), expected)
def test_negative():
    expected = 7
    assert add(-1, 8) == expected
"""
NOT_SEALED = TESTS + "\nKEY = lambda x: x\n"
CASES = (Case(args="(9182735, 1)", expected="9182736"), Case(args="(1, 1)", expected="2"))
INPUTS = (Case(stdin="3", expected="9"), Case(stdin="4", expected="16"))
FAILURES = ("failed", "error", "timeout", "tampered", "killed", "memory_limit", "output_limit")

# What passes where tests and code share a process, because no trace of it is known to tell it from honest code.
PASSES_UNSEALED = frozenset({"answers every question after a look at it", "waits for an interrupt"})


def assert_is_no_pass(done: Execution) -> None:
    assert not done.passed
    assert done.outcome in FAILURES
    assert done.error_type or done.limit or done.outcome == "killed"


@pytest.mark.parametrize("name", AGAINST_TESTS)
async def test_no_forgery_passes_sealed_tests(grade: Grade, name: str) -> None:
    done = await grade(AGAINST_TESTS[name], mode="pytest", test_code=TESTS, limits=LIMITS)
    assert done.sealed
    assert_is_no_pass(done)


@pytest.mark.parametrize("name", AGAINST_TESTS)
async def test_no_forgery_passes_a_sealed_checker(grade: Grade, name: str) -> None:
    checker = (
        "def check(candidate):\n    expected = 5\n    assert candidate(2, 3) == expected\n    assert candidate(-1, 8) == 7\n"
    )
    done = await grade(AGAINST_TESTS[name], mode="function", entry_point="add", test_code=checker, limits=LIMITS)
    assert done.sealed
    assert_is_no_pass(done)


@pytest.mark.parametrize("name", AGAINST_TESTS)
async def test_a_forgery_is_noticed_where_nothing_is_sealed(grade: Grade, name: str) -> None:
    done = await grade(AGAINST_TESTS[name], mode="pytest", test_code=NOT_SEALED, limits=LIMITS)
    assert not done.sealed
    if name in PASSES_UNSEALED:
        assert done.passed, "it is caught now: take it from the list"
    else:
        assert_is_no_pass(done)


@pytest.mark.parametrize("name", AGAINST_CASES)
async def test_no_forgery_passes_cases(grade: Grade, name: str) -> None:
    done = await grade(AGAINST_CASES[name], mode="function", entry_point="add", cases=CASES, limits=LIMITS)
    assert_is_no_pass(done)


@pytest.mark.parametrize("name", AGAINST_INPUTS)
@pytest.mark.parametrize("fresh", [False, True])
async def test_no_forgery_passes_inputs(grade: Grade, name: str, fresh: bool) -> None:
    done = await grade(AGAINST_INPUTS[name], mode="stdin", cases=INPUTS, limits=LIMITS, fresh=fresh)
    assert_is_no_pass(done)


async def test_honest_code_passes_all_of_them(grade: Grade) -> None:
    assert (await grade(HONEST, mode="pytest", test_code=TESTS)).passed
    assert (await grade(HONEST, mode="pytest", test_code=NOT_SEALED)).passed
    assert (await grade(HONEST, mode="function", entry_point="add", cases=CASES)).passed
    assert (await grade("print(int(input()) ** 2)", mode="stdin", cases=INPUTS)).passed
