"""Mode function: cases, and checkers in a box of their own."""

from __future__ import annotations

import pytest

from atlas.types import Case, RunLimits
from tests.sandbox.grading.conftest import Grade

pytestmark = pytest.mark.asyncio(loop_scope="package")


def cases(*pairs: tuple[str, str], compare: str = "exact") -> tuple[Case, ...]:
    return tuple(Case(args=args, expected=expected, compare=compare) for args, expected in pairs)  # type: ignore[arg-type]


async def call(grade: Grade, code: str, *pairs: tuple[str, str], entry: str = "f", **fields: object):  # type: ignore[no-untyped-def]
    return await grade(code, mode="function", entry_point=entry, cases=cases(*pairs), **fields)


async def test_right_values_pass(grade: Grade) -> None:
    done = await call(grade, "def f(a, b=1): return a + b", ("(1,)", "2"), ("(1, 2)", "3"), ("['a', 'b']", "'ab'"))
    assert done.passed
    assert (done.outcome, done.sealed, done.tests_run, done.tests_passed) == ("passed", True, 3, 3)
    assert [case.name for case in done.cases] == ["f(1)", "f(1, 2)", "f('a', 'b')"]


async def test_a_fresh_interpreter_gives_the_same_values(grade: Grade) -> None:
    assert (await call(grade, "def f(x): return {x: (x,)}", ("(1,)", "{1: (1,)}"), fresh=True)).passed
    script = "assert f(1) == 2"
    assert (await grade("def f(x): return x + 1", mode="function", entry_point="f", test_code=script, fresh=True)).passed


async def test_a_wrong_value_is_shown_beside_the_right_one(grade: Grade) -> None:
    done = await call(grade, "def f(x): return [x]", ("(1,)", "[1]"), ("(2,)", "(2,)"))
    assert (done.outcome, done.error_type, done.tests_passed) == ("failed", "WrongAnswer", 1)
    assert (done.cases[1].expected, done.cases[1].returned) == ("(2,)", "[2]")
    assert done.cases[1].message == "expected (2,), returned [2]"


@pytest.mark.parametrize(
    ("returned", "expected", "is_right"),
    [
        ("True", "True", True), ("True", "1", False), ("1", "True", False), ("'a'", "'a'", True),
        ("['a', 'b']", "['a', 'b']", True), ("[True]", "[True]", True), ("'1'", "1", False), ("None", "None", True),
        ("{'a': {1}}", "{'a': {1}}", True), ("1.0", "1", False), ("'it\\'s'", '"it\'s"', True), ("b'x'", "b'x'", True),
        ("float('nan')", "1", False), ("10 ** 400", "1" + "0" * 400, True),
        ("__import__('collections').Counter('aa')", "{'a': 2}", True), ("'\\ud800'", "'\\ud800'", True),
    ],
)  # fmt: skip
async def test_values_are_compared_with_their_types_and_never_as_text(
    grade: Grade, returned: str, expected: str, is_right: bool
) -> None:
    done = await call(grade, f"def f(): return {returned}", ("()", expected))
    assert done.passed is is_right


@pytest.mark.parametrize("entry", ["Solution.two_sum", "two_sum"])
async def test_a_method_of_class_solution_is_an_entry_point(grade: Grade, entry: str) -> None:
    code = """
class Solution:
    def __init__(self): self.seen = []
    def two_sum(self, nums, target):
        self.seen.append(target)
        return [len(self.seen) == 1, str(target), [i for i, n in enumerate(nums) if target - n in nums]]
"""
    done = await call(grade, code, ("([2, 7], 9)", "[True, '9', [0, 1]]"), ("([1, 2], 9)", "[True, '9', []]"), entry=entry)
    assert done.passed


async def test_keyword_arguments_are_passed(grade: Grade) -> None:
    case = Case(args="(1,)", kwargs="{'by': 2}", expected="3")
    done = await grade("def f(x, *, by): return x + by", mode="function", entry_point="f", cases=(case,))
    assert done.passed
    assert done.cases[0].name == "f(1, by=2)"


async def test_an_exception_is_that_of_its_case(grade: Grade) -> None:
    done = await call(grade, "def f(x):\n    return 10 // x", ("(0,)", "1"), ("(5,)", "2"))
    assert [case.outcome for case in done.cases] == ["error", "passed"]
    assert (done.outcome, done.error_type) == ("failed", "ZeroDivisionError")
    assert "return 10 // x" in done.cases[0].message
    assert "atlas" not in done.cases[0].message


@pytest.mark.parametrize(
    ("code", "error_type", "compiled"),
    [
        ("def f(:", "SyntaxError", False),
        ("import no_such_module\ndef f(): return 1", "ModuleNotFoundError", True),
        ("1 / 0", "ZeroDivisionError", True),
        ("import sys; sys.exit(0)", "SystemExit", True),
        ("import os; os._exit(0)", "NoResult", True),
        ("def g(): return 1", "NoEntryPoint", True),
        ("f = 3", "NoEntryPoint", True),
        ("def f():\n    import os\n    os._exit(0)", "NoResult", True),
        ("import os, signal\ndef f(): os.kill(os.getpid(), signal.SIGKILL)", None, True),
    ],
)
async def test_code_that_cannot_be_called_is_an_error_by_name(
    grade: Grade, code: str, error_type: str | None, compiled: bool
) -> None:
    done = await call(grade, code, ("()", "1"), ("()", "1"))
    assert done.outcome in (("error",) if error_type else ("error", "failed", "killed"))
    assert not done.passed
    assert done.compiled is compiled
    if error_type:
        assert done.error_type == error_type


async def test_cases_before_a_timeout_keep_their_results(grade: Grade) -> None:
    code = "def f(x):\n    while x == 2: pass\n    return x"
    pairs = [(f"({x},)", f"{x}") for x in range(5)]
    done = await call(grade, code, *pairs, limits=RunLimits(wall_s=0.5))
    assert [case.outcome for case in done.cases] == ["passed", "passed", "timeout", "skipped", "skipped"]
    assert (done.outcome, done.limit, done.tests_run, done.tests_passed) == ("timeout", "wall", 3, 2)


async def test_memory_that_is_not_there_is_the_memory_limit(grade: Grade) -> None:
    done = await call(grade, "def f(): return bytes(1 << 40)", ("()", "1"))
    assert (done.outcome, done.limit) == ("memory_limit", "memory")


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        ("object()", "a value of type object"),
        ("f", "a value of type function"),
        ("(i for i in [1])", "a value of type generator"),
        ("'x' * (5 << 20)", "larger than 4 MB"),
        ("deep()", "nested deeper than 60"),
    ],
)
async def test_a_value_that_is_not_plain_fails_its_case_and_no_other(grade: Grade, returned: str, why: str) -> None:
    code = f"def deep():\n    x = []\n    for i in range(99): x = [x]\n    return x\ndef f(x): return {returned} if x else 1"
    done = await call(grade, code, ("(1,)", "1"), ("(0,)", "1"))
    assert [case.outcome for case in done.cases] == ["failed", "passed"]
    assert why in done.cases[0].message


async def test_what_is_printed_does_not_decide(grade: Grade) -> None:
    done = await call(grade, "def f():\n    print('1')\n    return 2", ("()", "1"))
    assert done.outcome == "failed"
    assert done.stdout == "1\n"


CHECK = """
def check(candidate):
    assert candidate([1, 2]) == 3
    assert candidate([]) == 0, "empty"
"""


async def test_a_checker_passes_what_is_right(grade: Grade) -> None:
    done = await grade("def add(xs): return sum(xs)", mode="function", entry_point="add", test_code=CHECK)
    assert (done.outcome, done.sealed, done.tests_run) == ("passed", True, 1)
    assert done.cases[0].name == "check(candidate)"


async def test_a_failing_checker_shows_both_values(grade: Grade) -> None:
    done = await grade("def add(xs): return len(xs)", mode="function", entry_point="add", test_code=CHECK)
    assert (done.outcome, done.error_type) == ("failed", "AssertionError")
    assert "candidate([1, 2]) == 3: 2 and 3" in done.cases[0].message


async def test_a_script_of_asserts_is_one_test_for_each(grade: Grade) -> None:
    script = "x = 2\nassert f(x) == 4\nassert f(3) == 9\nfor i in (1, 2):\n    assert f(i) == i * i"
    done = await grade("def f(x): return x + 2", mode="function", entry_point="f", test_code=script)
    assert [case.outcome for case in done.cases] == ["passed", "failed", "failed"]
    assert done.cases[1].name == "assert f(3) == 9"


async def test_a_prompt_before_a_checker_brings_its_helpers_and_not_its_stub(grade: Grade) -> None:
    prompt = 'def shift(s):\n    return s[1:] + s[:1]\n\ndef unshift(s):\n    """Undo shift."""\n'
    test = "def check(candidate):\n    assert candidate(shift('abc')) == 'abc'\n    assert unshift('bca') == 'abc'"
    right = "def shift(s): return 'cheating'\ndef unshift(s): return s[-1:] + s[:-1]"
    assert (await grade(right, mode="function", entry_point="unshift", test_code=prompt + test)).passed
    wrong = "def shift(s): return s\ndef unshift(s): return s"
    assert not (await grade(wrong, mode="function", entry_point="unshift", test_code=prompt + test)).passed


async def test_a_checker_without_a_test_is_no_pass(grade: Grade) -> None:
    done = await grade("def f(): pass", mode="function", entry_point="f", test_code="x = 1")
    assert (done.outcome, done.error_type) == ("error", "NoTests")


@pytest.mark.parametrize("test_code", ["def check(:", "import no_such\nassert f() == 1", "undefined_name(1)"])
async def test_a_checker_that_does_not_work_proves_nothing(grade: Grade, test_code: str) -> None:
    done = await grade("def f(): return 1", mode="function", entry_point="f", test_code=test_code)
    assert not done.passed
    assert done.outcome in ("error", "failed")


async def test_a_checker_that_cannot_be_sealed_runs_beside_the_code_and_says_so(grade: Grade) -> None:
    script = "assert f(lambda x: x + 1) == 2\nassert isinstance(f(len.__call__) if 0 else 1, int)"
    done = await grade("def f(g): return g(1)", mode="function", entry_point="f", test_code=script)
    assert (done.outcome, done.sealed, done.tests_run) == ("passed", False, 2)
    wrong = await grade("def f(g): return g(2)", mode="function", entry_point="f", test_code=script)
    assert (wrong.outcome, wrong.sealed, wrong.tests_passed) == ("failed", False, 1)


async def test_the_traceback_of_the_code_comes_with_a_failing_checker(grade: Grade) -> None:
    done = await grade("def f(x):\n    return {}[x]  # here", mode="function", entry_point="f", test_code="assert f(1) == 1")
    assert (done.outcome, done.error_type) == ("failed", "KeyError")
    assert "return {}[x]  # here" in done.cases[0].message


async def test_an_argument_changed_in_place_is_changed_for_the_checker(grade: Grade) -> None:
    script = "x = [3, 1]\nassert f(x) is None\nassert x == [1, 3]"
    done = await grade("def f(x): x.sort()", mode="function", entry_point="f", test_code=script)
    assert done.passed
    assert done.sealed
