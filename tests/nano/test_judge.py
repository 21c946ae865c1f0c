"""The evaluator's fences: what may not run does not, what does not end is killed, nothing passes untested."""

from __future__ import annotations

import time

import pytest

from nano.judge import CPU_LIMIT_S, WALL_LIMIT_S, judge, refusal

TESTS = [("[1, 2]", "3"), ("[]", "0")]


def outcome(body: str) -> str:
    return judge(f"def f(xs):\n    {body}\n", "f", TESTS).outcome


def test_a_correct_function_passes_every_test() -> None:
    verdict = judge("def f(xs):\n    return sum(xs)\n", "f", TESTS)
    assert (verdict.passed, verdict.tests_run, verdict.tests_passed) == (True, 2, 2)


def test_one_wrong_result_fails() -> None:
    verdict = judge("def f(xs):\n    return 3\n", "f", TESTS)
    assert (verdict.outcome, verdict.tests_passed) == ("wrong", 1)


def test_zero_tests_is_not_a_pass() -> None:
    assert not judge("def f(xs):\n    return sum(xs)\n", "f", []).passed


@pytest.mark.parametrize(
    ("returned", "expected"), [("sum(xs) > 0", "1"), ("float(sum(xs))", "3"), ("(sum(xs),)", "[3]"), ("[True]", "[1]")]
)
def test_a_result_of_another_type_is_wrong(returned: str, expected: str) -> None:
    assert judge(f"def f(xs):\n    return {returned}\n", "f", [("[1, 2]", expected)]).outcome == "wrong"


@pytest.mark.parametrize(
    "code",
    [
        "import os\ndef f(xs): return 0",
        "from os import system\ndef f(xs): return 0",
        "def f(xs): return ().__class__.__bases__",
        "def f(xs): return f'{xs.__class__}'",
        "def f(xs): return '{0.__class__}'.format(xs)",
        "def f(xs): return __import__('os')",
        "def f(xs): return __builtins__",
        "def f(xs): return (x for x in xs).gi_frame",
        "def f(xs):\n    try:\n        return 0\n    finally:\n        pass",
        "class A: pass",
        "async def f(xs): return 0",
        "def f(xs): global y; y = 1",
        "@print\ndef f(xs): return 0",
        "def f(xs): return (",
    ],
)
def test_what_is_not_on_the_allow_list_is_refused_before_it_runs(code: str) -> None:
    assert refusal(code) is not None
    assert judge(code, "f", TESTS).outcome == "refused"


@pytest.mark.parametrize("name", ["open", "eval", "exec", "getattr", "vars", "globals", "print", "input", "type", "object"])
def test_builtins_that_reach_out_do_not_exist(name: str) -> None:
    assert outcome(f"return {name}(xs)") == "error"


def test_an_endless_loop_is_killed() -> None:
    started = time.monotonic()
    assert outcome("while True: pass") == "timeout"
    assert time.monotonic() - started < WALL_LIMIT_S + CPU_LIMIT_S + 5


def test_an_endless_c_call_is_killed() -> None:
    assert outcome("return 3 ** 10 ** 9") == "timeout"


@pytest.mark.parametrize(
    "body", ["return [0] * 10 ** 10", "return 'a' * 10 ** 9", "return f(xs)", "return xs[9]", "return g(xs)"]
)
def test_memory_recursion_and_ordinary_errors_fail(body: str) -> None:
    assert outcome(body) == "error"


def test_a_candidate_without_the_function_fails() -> None:
    assert judge("def g(xs):\n    return sum(xs)\n", "f", TESTS).outcome == "error"
