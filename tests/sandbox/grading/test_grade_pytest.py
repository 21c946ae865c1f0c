"""Mode pytest: sealed wherever the tests allow it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from atlas.types import Execution, RunLimits
from tests.sandbox.grading.conftest import Grade

pytestmark = pytest.mark.asyncio(loop_scope="package")

TESTS = """
import pytest
from solution import add

@pytest.mark.parametrize("a, b, total", [(1, 2, 3), (-1, 1, 0)])
def test_sum(a, b, total):
    assert add(a, b) == total

class TestMore:
    def test_text(self):
        assert add("a", "b") == "ab"
"""


async def test_right_code_passes_sealed(grade: Grade) -> None:
    done = await grade("def add(a, b): return a + b", mode="pytest", test_code=TESTS)
    assert (done.outcome, done.sealed, done.tests_run, done.tests_passed) == ("passed", True, 3, 3)
    assert [case.name for case in done.cases] == [
        "test_solution.py::test_sum[1-2-3]",
        "test_solution.py::test_sum[-1-1-0]",
        "test_solution.py::TestMore::test_text",
    ]
    assert "3 passed" in done.stdout


async def test_wrong_code_fails_and_the_assertion_is_explained(grade: Grade) -> None:
    done = await grade("def add(a, b): return a", mode="pytest", test_code=TESTS)
    assert (done.outcome, done.tests_passed, done.error_type) == ("failed", 0, "AssertionError")
    assert "assert 1 == 3" in done.cases[0].message
    assert "where 1 = add(1, 2)" in done.cases[0].message


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_fresh_interpreter_gives_the_same_verdict(grade: Grade, fresh: bool) -> None:
    assert (await grade("def add(a, b): return a + b", mode="pytest", test_code=TESTS, fresh=fresh)).passed
    assert (await grade("def add(a, b): return a - b", mode="pytest", test_code=TESTS, fresh=fresh)).outcome == "failed"


RICH = """
import pytest
from solution import Account, Broke, LIMIT, countdown, shout, sort_in_place, transpose

@pytest.fixture
def account():
    return Account(10)

def test_methods(account):
    account.pay(3)
    assert account.balance == 7
    assert account.history() == [("pay", 3)]
    assert len(account) == 1 and "pay" in account and str(account) == "<7>"
    assert [kind for kind in account] == ["pay"]
    assert account[0] == ("pay", 3)

def test_exception(account):
    with pytest.raises(Broke, match=r"short of 5$") as caught:
        account.pay(15)
    assert caught.value.missing == 5
    assert isinstance(caught.value, ValueError)

def test_builtin_exception():
    with pytest.raises(KeyError):
        transpose({})

def test_in_place():
    values = [3, 1, 2]
    assert sort_in_place(values) is None
    assert values == [1, 2, 3]

def test_generator():
    assert list(countdown(3)) == [3, 2, 1]
    steps = countdown(2)
    assert next(steps) == 2 and next(steps) == 1
    with pytest.raises(StopIteration):
        next(steps)

def test_output(capsys):
    shout("hi")
    assert capsys.readouterr().out == "HI\\n"

def test_constant():
    assert LIMIT == {"most": (1, 2.5, None)}

def test_nested_values():
    assert transpose([(1, "a"), (2, "b")]) == [(1, 2), ("a", "b")]
"""
RICH_CODE = """
LIMIT = {"most": (1, 2.5, None)}
class Base(ValueError): pass
class Broke(Base):
    def __init__(self, missing):
        super().__init__(f"short of {missing}")
        self.missing = missing
class Account:
    def __init__(self, balance):
        self.balance = balance
        self._history = []
    def pay(self, amount):
        if amount > self.balance:
            raise Broke(amount - self.balance)
        self.balance -= amount
        self._history.append(("pay", amount))
        return self
    def history(self): return list(self._history)
    def __len__(self): return len(self._history)
    def __contains__(self, kind): return any(k == kind for k, _ in self._history)
    def __str__(self): return f"<{self.balance}>"
    def __iter__(self): return iter(k for k, _ in self._history)
    def __getitem__(self, index): return self._history[index]
def countdown(n):
    while n:
        yield n
        n -= 1
def shout(text): print(text.upper())
def sort_in_place(values): values.sort()
def transpose(rows): return list(zip(*rows)) if rows else {}[0]
"""


async def test_objects_exceptions_generators_and_output_cross_the_boxes(grade: Grade) -> None:
    done = await grade(RICH_CODE, mode="pytest", test_code=RICH)
    assert done.sealed
    assert [(case.name, case.message) for case in done.cases if case.outcome != "passed"] == []
    assert done.tests_run == 8


@pytest.mark.parametrize(
    ("old", "new", "failing"),
    [
        ("self.balance -= amount", "pass", "test_methods"),
        ("class Broke(Base)", "class Broke(KeyError)", "test_exception"),
        ("short of {missing}", "short of {missing}!", "test_exception"),
        ("values.sort()", "sorted(values)", "test_in_place"),
        ("yield n", "yield n + 1", "test_generator"),
        ("text.upper()", "text", "test_output"),
        ("2.5, None", "2.5, False", "test_constant"),
        ("list(zip(*rows))", "list(map(list, zip(*rows)))", "test_nested_values"),
        ("else {}[0]", "else []", "test_builtin_exception"),
    ],
)
async def test_a_single_fault_fails_its_test(grade: Grade, old: str, new: str, failing: str) -> None:
    assert old in RICH_CODE
    done = await grade(RICH_CODE.replace(old, new), mode="pytest", test_code=RICH)
    assert done.outcome == "failed"
    assert failing in {case.name.rpartition("::")[2] for case in done.cases if case.outcome == "failed"}


async def test_the_traceback_of_the_code_comes_with_the_failure(grade: Grade) -> None:
    done = await grade("def add(a, b):\n    return a.no_such  # here", mode="pytest", test_code=TESTS)
    assert done.error_type == "AttributeError"
    assert "return a.no_such  # here" in done.cases[0].message


@pytest.mark.parametrize(
    ("code", "outcome", "error_type"),
    [
        ("def add(:", "error", "SyntaxError"),
        ("import no_such_module", "error", "ModuleNotFoundError"),
        ("import sys; sys.exit(0)", "error", "SystemExit"),
        ("import os; os._exit(0)", "error", "NoResult"),
        ("def other(): pass", "error", "ImportError"),
        ("import os\ndef add(a, b): os._exit(0)", "error", "NoResult"),
        ("import os\ndef add(a, b): os.kill(os.getpid(), 9)", None, None),
        ("import sys\ndef add(a, b): sys.exit(0)", "failed", "SystemExit"),
        ("def add(a, b): raise KeyboardInterrupt", None, None),
    ],
)
@pytest.mark.parametrize("is_sealed", [True, False])
async def test_code_that_does_not_come_to_its_tests_is_an_error_by_name(
    grade: Grade, code: str, outcome: str | None, error_type: str | None, is_sealed: bool
) -> None:
    done = await grade(code, mode="pytest", test_code=TESTS if is_sealed else TESTS + NOT_SEALED)
    assert done.sealed is is_sealed
    assert not done.passed
    if outcome:
        assert (done.outcome, done.error_type) == (outcome, error_type)


NOT_SEALED = "\n\nDOUBLE = lambda x: 2 * x\n\ndef test_callback():\n    assert add(DOUBLE(1), 1) == 3\n"


async def test_tests_that_cannot_be_sealed_run_beside_the_code_and_it_is_said(grade: Grade) -> None:
    done = await grade("def add(a, b): return a + b", mode="pytest", test_code=TESTS + NOT_SEALED)
    assert (done.outcome, done.sealed, done.tests_run) == ("passed", False, 4)
    wrong = await grade("def add(a, b): return a - b", mode="pytest", test_code=TESTS + NOT_SEALED)
    assert (wrong.outcome, wrong.sealed) == ("failed", False)
    assert "assert -1 == 3" in wrong.cases[0].message


async def test_fixtures_of_pytest_work_where_nothing_is_sealed(grade: Grade) -> None:
    tests = """
import solution
def test_all(tmp_path, monkeypatch, caplog, capfd, recwarn):
    (tmp_path / "x").write_text("3")
    monkeypatch.setattr(solution, "FACTOR", 4)
    assert solution.scale(tmp_path / "x") == 12
    assert "scaled" in caplog.text
    assert capfd.readouterr().out == "x\\n"
"""
    code = """
import logging
FACTOR = 2
def scale(path):
    logging.getLogger().warning("scaled")
    print("x")
    return FACTOR * int(path.read_text())
"""
    done = await grade(code, mode="pytest", test_code=tests)
    assert (done.outcome, done.sealed) == ("passed", False), done.cases


@pytest.mark.skipif(find_spec("pytest_asyncio") is None, reason="needs pytest-asyncio")
async def test_asynchronous_tests_run_where_their_plugin_is_installed(grade: Grade) -> None:
    tests = "from solution import f\nasync def test(): assert await f(1) == 2"
    assert (await grade("async def f(x): return x + 1", mode="pytest", test_code=tests)).outcome == "passed"
    assert (await grade("async def f(x): return x", mode="pytest", test_code=tests)).outcome == "failed"


async def test_a_conftest_of_the_tests_is_used_and_not_sealed(grade: Grade) -> None:
    files = {"conftest.py": "import pytest\n@pytest.fixture\ndef three():\n    return 3\n", "data.txt": "4"}
    tests = "from solution import f\ndef test(three): assert f(three) == 7"
    done = await grade("def f(x): return x + int(open('data.txt').read())", mode="pytest", test_code=tests, files=files)
    assert (done.outcome, done.sealed) == ("passed", False), done


@pytest.mark.parametrize(
    "tests",
    [
        "import pytest\nfrom solution import f\ndef test(): pytest.skip('no')",
        "import pytest\nfrom solution import f\n@pytest.mark.xfail\ndef test(): assert f() == 2",
        "import pytest\nfrom solution import f\n@pytest.mark.xfail\ndef test(): assert f() == 1",
        "import pytest\nfrom solution import f\n@pytest.mark.skip\ndef test(): assert f() == 1\ndef test_2(): assert f() == 1",
    ],
)
async def test_a_skip_or_an_expected_failure_is_no_pass(grade: Grade, tests: str) -> None:
    done = await grade("def f(): return 1", mode="pytest", test_code=tests)
    assert not done.passed
    assert done.outcome == "failed"


async def test_no_tests_is_no_pass(grade: Grade) -> None:
    done = await grade("def f(): return 1", mode="pytest", test_code="from solution import f\nassert f() == 1")
    assert (done.outcome, done.error_type, done.tests_run) == ("error", "NoTests", 0)


async def test_tests_that_do_not_parse_are_an_error(grade: Grade) -> None:
    done = await grade("def f(): return 1", mode="pytest", test_code="def test(:")
    assert (done.outcome, done.error_type) == ("error", "SyntaxError")


async def test_a_failing_fixture_is_an_error_of_its_test(grade: Grade) -> None:
    tests = """
import pytest
from solution import f
@pytest.fixture
def x(): return f(0)
def test(x): assert x
def test_2(): assert f(1) == 1
"""
    done = await grade("def f(x): return 1 // x", mode="pytest", test_code=tests)
    assert [case.outcome for case in done.cases] == ["error", "passed"]
    assert (done.outcome, done.error_type) == ("failed", "ZeroDivisionError")


SLOW = "from solution import f\ndef test_1(): assert f(1) == 1\ndef test_2(): assert f(2) == 2\ndef test_3(): assert f(3) == 3"


@pytest.mark.parametrize("is_sealed", [True, False])
async def test_tests_before_a_timeout_keep_their_results(grade: Grade, is_sealed: bool) -> None:
    tests = SLOW if is_sealed else SLOW + "\nL = lambda: 0"
    code = "def f(x):\n    while x == 2: pass\n    return x"
    done = await grade(code, mode="pytest", test_code=tests, limits=RunLimits(wall_s=1.0))
    assert (done.outcome, done.limit, done.sealed) == ("timeout", "wall", is_sealed)
    assert done.cases[0].outcome == "passed"
    assert done.tests_passed == 1


@pytest.mark.parametrize("is_sealed", [True, False])
async def test_memory_that_is_not_there_is_the_memory_limit(grade: Grade, is_sealed: bool) -> None:
    tests = SLOW if is_sealed else SLOW + "\nL = lambda: 0"
    done = await grade("def f(x): return len(bytes(1 << 40))", mode="pytest", test_code=tests)
    assert (done.outcome, done.limit) == ("memory_limit", "memory"), done


async def test_output_of_the_code_is_limited_where_it_is_written(grade: Grade) -> None:
    code = "import os\ndef f(x):\n    while True: os.write(1, b'x' * 60000)"
    done = await grade(code, mode="pytest", test_code=SLOW)
    assert (done.outcome, done.limit) == ("output_limit", "output")


def failing(done: Execution) -> str:
    return done.cases[0].message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return object()", "the code returned a value of type object"),
        ("return lambda: 0", "the code returned a value of type function"),
        ("return 'x' * (5 << 20)", "larger than 4 MB"),
    ],
)
async def test_a_result_that_is_not_plain_fails_the_test_that_looks_at_it(grade: Grade, body: str, message: str) -> None:
    tests = "from solution import f\ndef test(): assert f() == 1\ndef test_other(): f()"
    done = await grade(f"def f(): {body}", mode="pytest", test_code=tests)
    assert [case.outcome for case in done.cases] == ["failed", "passed"]
    assert message in failing(done)


async def test_no_except_clause_of_a_test_makes_a_pass_of_a_violation(grade: Grade) -> None:
    tests = """
import pytest
from solution import f
def test_raises():
    with pytest.raises(Exception): f() == 1
def test_raises_all():
    with pytest.raises(BaseException): f() == 1
def test_bare():
    try: f() == 1
    except: pass
"""
    done = await grade("def f(): return object()", mode="pytest", test_code=tests)
    assert [case.outcome for case in done.cases] == ["failed"] * 3


async def test_a_test_cannot_pass_what_does_not_cross(grade: Grade) -> None:
    tests = "from solution import f, g\ndef test():\n    x = g()\n    assert f([x]) is None"
    done = await grade("def g(): yield 1\ndef f(x): pass", mode="pytest", test_code=tests)
    assert done.outcome == "failed"
    assert "the tests pass a value of type" in failing(done)
