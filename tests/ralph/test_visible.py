"""Visible tests of every form become programs for the sandbox; about a third of them are held back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.errors import BadRequest
from atlas.ralph.asserts import loose_cases, split_asserts
from atlas.ralph.examples import examples_in, named_in, programs_in
from atlas.ralph.visible import Suite, read_tests, shown_code, shown_examples
from atlas.sandbox import literals
from atlas.types import Case, Program, Request, VisibleTests


def suite_of(task: str = "Write f(x).", **fields: object) -> Suite:
    entry_point = str(fields.pop("entry_point", ""))
    tests = VisibleTests(**fields)  # type: ignore[arg-type]  # its fields, named by each test
    suite = read_tests(Request(task=task, tests=tests, entry_point=entry_point))
    assert suite is not None
    return suite


def only(suite: Suite) -> Program:
    (check,) = suite.checks
    return check


@pytest.mark.parametrize(
    ("line", "case"),
    [
        ("assert f(1) == 2", Case(args="(1,)", expected="2", compare="approx", tolerance=0)),
        ("assert 2 == f(1)", Case(args="(1,)", expected="2", compare="approx", tolerance=0)),
        ("assert f(1, y=[2]) == (3,)", Case(args="(1,)", kwargs="{'y': [2]}", expected="(3,)", compare="approx", tolerance=0)),
        ("assert f('a') is None", Case(args="('a',)", expected="None", tolerance=0)),
        ("assert f() == -1.5", Case(args="()", expected="-1.5", compare="approx", tolerance=0)),
        ("assert solution.f(1) == 2", Case(args="(1,)", expected="2", compare="approx", tolerance=0)),
        ("assert f(1) == pytest.approx(2.5)", Case(args="(1,)", expected="2.5", compare="approx", tolerance=1e-6)),
        ("assert f(1) == pytest.approx(-2.5, rel=0.1)", Case(args="(1,)", expected="-2.5", compare="approx", tolerance=0.1)),
        ("assert math.isclose(2.5, f(1))", Case(args="(1,)", expected="2.5", compare="approx", tolerance=1e-9)),
    ],
)
def test_an_assert_is_a_case(line: str, case: Case) -> None:
    check = only(suite_of(code=f"import math\n{line}\n"))
    assert (check.mode, check.entry_point, check.cases) == ("function", "f", (case,))


NO_CASES = """
assert f(1)
assert f(1) < 2
assert f(f(1)) == 2
assert f(x) == 2
assert len(f(1)) == 2
assert f(1) == g(2)
assert f(*[1]) == 2
assert f(1) == 2 == 2
assert f(1).y == 2
assert abs(f(1) - 2) < 1e-6
assert f(1) != 3
assert f(1) == pytest.approx(0.003)
assert f(1) == pytest.approx(3.0, abs=0.1)
assert math.isclose(f(1), 0.0)
assert math.isclose(f(1), 3.0, abs_tol=0.1)
"""


@pytest.mark.parametrize("line", NO_CASES.strip().splitlines())
def test_what_is_no_case_stays_code(line: str) -> None:
    check = only(suite_of(code=line))
    assert (check.mode, check.cases, check.entry_point) == ("function", (), "f")
    assert "assert" in check.test_code


def test_asserts_of_both_kinds_are_two_checks() -> None:
    first, second = suite_of(code="import math\nassert f(1) == 2\nassert f(2) > 0\n").checks
    assert (len(first.cases), first.test_code) == (1, "")
    assert second.test_code == "import math\nassert f(2) > 0"


def test_statements_between_asserts_keep_them_together() -> None:
    code = "xs = [1]\nassert f(xs) == 1\nxs.append(2)\nassert f(xs) == 3\nassert f(1) == 2\n"
    assert only(suite_of(code=code)).test_code == code


def test_asserts_on_two_functions_are_two_checks() -> None:
    assert [check.entry_point for check in suite_of(code="assert f(1) == 2\nassert g(1) == 2\n").checks] == ["f", "g"]


def test_candidate_is_the_entry_point() -> None:
    assert only(suite_of(code="assert candidate(1) == 2\n", entry_point="f")).entry_point == "f"


@pytest.mark.parametrize(
    "code", ["def test_a():\n    pass\n", "class TestA:\n    def test_b(self): pass\n", "async def test_c(): ...\n"]
)
def test_a_pytest_module_stays_one(code: str) -> None:
    assert only(suite_of(code=code)).mode == "pytest"


def test_a_checker_function_stays_one() -> None:
    check = only(suite_of(code="def check(candidate):\n    assert candidate(1)\n", entry_point="f"))
    assert (check.mode, check.entry_point) == ("function", "f")


def test_inputs_and_outputs_are_runs_of_the_program() -> None:
    assert only(suite_of(cases=(Case(stdin="1\n", expected="2\n"),))).mode == "stdin"


def test_cases_without_a_name_take_it_from_the_task() -> None:
    assert only(suite_of("Write a function called g.", cases=(Case(args="(1,)", expected="2"),))).entry_point == "g"


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("Write it.", {"code": "x = 1\n"}, "hold no test"),
        ("Write it.", {"code": "assert f(1 ==\n"}, "no Python that parses"),
        ("Write it.", {"cases": (Case(args="(1,)", expected="2"),)}, "give entry_point"),
        ("Write it.", {"code": "def check(candidate): pass\n"}, "give entry_point"),
    ],
)
def test_tests_that_make_no_sense_are_refused(task: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        suite_of(task, **fields)


def test_a_third_of_three_or_more_tests_is_held_back() -> None:
    numbers = {
        count: len(suite_of(code="".join(f"assert f({number}) == 1\n" for number in range(count))).held_back)
        for count in (1, 2, 3, 6, 9, 10)
    }
    assert numbers == {1: 0, 2: 0, 3: 1, 6: 2, 9: 3, 10: 3}


def test_what_is_held_back_depends_on_the_seed_alone() -> None:
    tests = VisibleTests(code="".join(f"assert f({number}) == 1\n" for number in range(12)))
    suites = [read_tests(Request(task="f", tests=tests, seed=seed)) for seed in (1, 1, 2, None)]
    held = [suite.held_back for suite in suites if suite]
    assert held[0] == held[1]
    assert held[0] != held[2]


def test_the_prompt_shows_the_rest() -> None:
    suite = suite_of(code="".join(f"assert f({number}) == {number}\n" for number in range(6)))
    assert len(shown_examples(suite)) == 4
    module = "import pytest\n\n" + "".join(
        f"@pytest.mark.skipif(False, reason='{n}')\ndef test_{n}():\n    assert True\n" for n in range(6)
    )
    (snippet,) = shown_code(suite_of(code=module))
    assert snippet.text.count("def test_") == 4
    assert snippet.text.count("skipif") == 4


EXAMPLES = {
    ">>> f(1)\n2\n": ["f(1,)=2"],
    "    >>> f([1, 2])\n    [2,\n     3]\n\n    text": ["f([1, 2],)=[2, 3]"],
    ">>> f(1)\n2\n>>> f(2)\n3\n": ["f(1,)=2", "f(2,)=3"],
    '"""\n>>> f(1)\n2\n"""\n```': ["f(1,)=2"],
    "f(1) -> 2, f(2) -> 3": ["f(1,)=2", "f(2,)=3"],
    "For example, `f(2, 3)` should return `5`.": ["f(2, 3)=5"],
    "f('Bob') returns 'Hello, Bob!'.": ["f('Bob',)='Hello, Bob!'"],
    "f(7) is True and f(8) is False": ["f(7,)=True", "f(8,)=False"],
    "f('a(b') => {'a': 1}": ["f('a(b',)={'a': 1}"],
    "f(2) = 12.5 (about)": ["f(2,)=12.5"],
    "assert f([1]) == 1\nassert f([]) == 0": ["f([1],)=1", "f([],)=0"],
    "Write f(a, b).\nInput: a = [2, 7], b = 9\nOutput: [0, 1]\nExplanation: so": ["f([2, 7], 9)=[0, 1]"],
}
NO_EXAMPLES = [
    "def f(x: int) -> int: returns 3",
    "def main() -> None",
    "f() -> None",
    "f(2) is prime",
    "f(x) -> 2",
    "f(1) -> g(2)",
    "f(1) == 2 but also f(1) -> 3",
    ">>> f(1)\nTraceback (most recent call last):\nValueError",
    ">>> x = f(1)\n>>> x\n2\n",
    "f(1",
    "returns len(xs) -> int",
]


@pytest.mark.parametrize(("task", "expected"), EXAMPLES.items())
def test_an_example_in_the_task_is_a_test(task: str, expected: list[str]) -> None:
    found = examples_in(task, "f")
    assert [f"{called.name}{called.case.args}={called.case.expected}" for called in found] == expected


@pytest.mark.parametrize("task", NO_EXAMPLES)
def test_what_may_be_something_else_is_no_test(task: str) -> None:
    assert [called for called in examples_in(task) if called.name != "x"] == []


@pytest.mark.parametrize(
    "task",
    [
        "Read n.\n\nInput\n3\n1 2 3\n\nOutput\n6\n\nNote\nthe sum",
        "Sample Input:\n```\n3\n1 2 3\n```\nSample Output:\n```\n6\n```\n",
        "### Input\n3\n1 2 3\n### Output\n6\n",
    ],
)
def test_blocks_of_input_and_output_are_runs(task: str) -> None:
    assert programs_in(task) == (Case(stdin="3\n1 2 3\n", expected="6\n"),)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("Write a function called foo that adds.", "foo"),
        ("write function to_roman that converts", "to_roman"),
        ("Write `add(a, b)`.", "add"),
        ("Implement a function `baz` please", "baz"),
        ("Complete:\ndef has_close(xs: list[float]) -> bool:\n", "has_close"),
        ("A function reverses a list", ""),
        ("Sort a list using sorted(xs)", ""),
        ("Hello", ""),
    ],
)
def test_the_function_that_a_task_names(task: str, name: str) -> None:
    assert named_in(task) == name


def test_without_tests_and_examples_there_is_no_suite() -> None:
    assert read_tests(Request(task="Write f(x), which adds one.")) is None


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5) | st.just(...)
KEYS = st.integers() | st.text(max_size=3) | st.tuples(st.booleans())
LITERALS = st.recursive(
    SCALARS | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=300)
@given(LITERALS, LITERALS)
def test_every_case_that_is_read_is_one_the_sandbox_takes(argument: object, expected: object) -> None:
    """What a model writes as a test must not end a run as somebody's wrong request."""
    for called in loose_cases(f"assert f({argument!r}) == {expected!r}\nassert f({'[' * 30 + ']' * 30}) == 1\n"):
        literals.encoded(called.case.args, what="args")
        literals.encoded(called.case.expected, what="expected")


def test_what_does_not_travel_is_no_case() -> None:
    assert loose_cases("assert f(1) == ...\nassert f('\\ud800') == 1\nassert f({[1]}) == 1\nassert f({[1]: 2}) == 1\n") == ()


@settings(max_examples=200)
@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["f(1)", " -> ", "2", "\n", ">>> ", "Input:", "Output:", "`", "(", "'", "[1,"])).map("".join)
)
def test_no_task_and_no_tests_make_the_reader_fail(text: str) -> None:
    examples_in(text)
    programs_in(text)
    named_in(text)
    split_asserts(text)
