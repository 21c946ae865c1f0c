"""Whole programs: mode run, mode stdin, and what is no program at all."""

from __future__ import annotations

import msgspec
import pytest

from atlas.errors import BadRequest
from atlas.sandbox.grade_run import find_difference
from atlas.types import Case, RunLimits
from tests.sandbox.grading.conftest import Grade

pytestmark = pytest.mark.asyncio(loop_scope="package")

SHORT = RunLimits(wall_s=1.0)


async def test_a_program_runs_to_its_end(grade: Grade) -> None:
    done = await grade("import sys\nprint(input(), sys.argv, __name__)\nprint('x', file=sys.stderr)", stdin="hello\n")
    assert (done.outcome, done.exit_code, done.stdout, done.stderr) == ("completed", 0, "hello ['main.py'] __main__\n", "x\n")
    assert done.tier == "native"
    assert not done.sealed
    assert not done.passed


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('bye')", 1, "bye\n"),
        ("exit(4)", 4, ""),
        ("raise SystemExit(256 + 5)", 5, ""),
        ("import os; os._exit(6)", 6, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
    ],
)
async def test_exit_codes_are_those_of_an_interpreter(grade: Grade, code: str, exit_code: int, stderr: str, fresh: bool) -> None:
    done = await grade(code, fresh=fresh)
    assert (done.exit_code, done.stderr) == (exit_code, stderr)
    assert done.outcome == ("failed" if exit_code else "completed")


@pytest.mark.parametrize("fresh", [False, True])
async def test_what_is_registered_for_the_end_runs_and_threads_are_waited_for(grade: Grade, fresh: bool) -> None:
    code = """
import atexit, threading, time
atexit.register(print, "last")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print("main")
"""
    done = await grade(code, fresh=fresh)
    assert done.stdout == "main\nthread\nlast\n"


async def test_an_uncaught_exception_is_named_and_its_traceback_shows_the_line(grade: Grade) -> None:
    done = await grade("def f(x):\n    return 1 / x\n\nf(0)")
    assert (done.outcome, done.error_type, done.error_message) == ("failed", "ZeroDivisionError", "division by zero")
    assert "return 1 / x" in done.stderr
    assert "atlas" not in done.stderr


@pytest.mark.parametrize(
    ("code", "error_type"), [("def f(:", "SyntaxError"), ("if 1:\nx", "IndentationError"), ("x = '\x00'", "SyntaxError")]
)
async def test_code_that_does_not_compile_says_so(grade: Grade, code: str, error_type: str) -> None:
    for mode in ("run", "lint"):
        done = await grade(code, mode=mode)
        assert (done.outcome, done.compiled) == ("error", False)
        assert done.error_type in (error_type, "ValueError")


async def test_a_missing_module_is_named(grade: Grade) -> None:
    done = await grade("import no_such_module")
    assert (done.outcome, done.error_type) == ("error", "ModuleNotFoundError")
    assert "no_such_module" in done.error_message


@pytest.mark.parametrize(
    ("code", "outcome", "limit"),
    [
        ("while True: pass", "timeout", "wall"),
        ("import time; time.sleep(60)", "timeout", "wall"),
        ("x = bytes(1 << 40)", "memory_limit", "memory"),
        ("x = [0] * (1 << 60)", "memory_limit", "memory"),
        ("while True: print('x' * 10000)", "output_limit", "output"),
        ("f = open('f', 'wb')\nwhile True: f.write(bytes(1 << 20))", "failed", "file_size"),
        ("import threading, time\nfor i in range(200): threading.Thread(target=time.sleep, args=(5,), daemon=True).start()",
         "failed", "processes"),
        ("import os, time\nfor i in range(200):\n    if not os.fork(): time.sleep(5)", "failed", "processes"),
    ],
)  # fmt: skip
async def test_a_limit_that_was_hit_is_named(grade: Grade, code: str, outcome: str, limit: str) -> None:
    done = await grade(code, limits=SHORT)
    assert (done.outcome, done.limit) == (outcome, limit)


async def test_time_of_the_processor_is_a_limit_of_its_own(grade: Grade) -> None:
    done = await grade("while True: pass", limits=RunLimits(wall_s=20, cpu_s=1))
    assert (done.outcome, done.limit) == ("timeout", "cpu")


async def test_a_crash_is_named_by_its_signal(grade: Grade) -> None:
    done = await grade("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (done.outcome, done.exit_code, done.error_type) == ("failed", -11, "SIGSEGV")


async def test_what_an_exception_says_can_be_sent_on(grade: Grade) -> None:
    done = await grade("class X\u00fc(Exception): pass\nraise X\u00fc('\\ud800' * 9000)")
    assert done.error_type == "X\u00fc"
    msgspec.msgpack.encode(done)


async def test_files_lie_beside_the_code(grade: Grade) -> None:
    files = {"data/words.txt": "a b", "helper.py": "X = 3"}
    done = await grade("import helper; print(open('data/words.txt').read(), helper.X)", files=files)
    assert done.stdout == "a b 3\n"


async def test_a_fresh_interpreter_has_a_hash_seed_of_its_own(grade: Grade) -> None:
    seen = {(await grade("print(hash('x'))", fresh=True)).stdout for _ in range(3)}
    assert len(seen) == 3


async def test_the_program_finds_the_interpreter_as_one_starts(grade: Grade) -> None:
    """No module of a program's name is there already, and nothing of ours is in its main module."""
    code = "import sys\nprint('solution' in sys.modules, sorted(n for n in vars() if not n.startswith('__')), __file__)"
    warm, fresh = await grade(code), await grade(code, fresh=True)
    assert warm.stdout == fresh.stdout == "False ['sys'] /box/work/main.py\n"


SQUARE = "print(int(input()) ** 2)"


async def test_each_case_is_a_run_of_its_own(grade: Grade) -> None:
    code = "import os\nprint(os.path.exists('seen'))\nopen('seen', 'w')"
    done = await grade(code, mode="stdin", cases=(Case(stdin="", expected="False"), Case(stdin="", expected="False")))
    assert done.passed
    assert done.sealed


async def test_a_right_program_passes_and_a_wrong_one_fails_by_name(grade: Grade) -> None:
    cases = (Case(stdin="2", expected="4"), Case(stdin="3\n", expected="9\n"), Case(stdin="-1", expected="1  \n\n"))
    right = await grade(SQUARE, mode="stdin", cases=cases)
    assert (right.outcome, right.tests_run, right.tests_passed) == ("passed", 3, 3)
    wrong = await grade("print(int(input()) * 2)", mode="stdin", cases=cases)
    assert (wrong.outcome, wrong.tests_run, wrong.tests_passed, wrong.error_type) == ("failed", 3, 1, "WrongAnswer")
    assert wrong.cases[1].message == "line 1: expected '9', got '6'"
    assert wrong.cases[1].returned == "6\n"


async def test_every_case_is_reported_after_one_has_failed(grade: Grade) -> None:
    cases = (Case(stdin="x", expected="4"), Case(stdin="3", expected="9"))
    done = await grade(SQUARE, mode="stdin", cases=cases)
    assert [case.outcome for case in done.cases] == ["error", "passed"]
    assert "ValueError" in done.cases[0].message
    assert (done.outcome, done.error_type) == ("failed", "ValueError")


async def test_after_three_timeouts_the_rest_is_skipped(grade: Grade) -> None:
    done = await grade("while True: pass", mode="stdin", cases=(Case(stdin="", expected=""),) * 5, limits=RunLimits(wall_s=0.3))
    assert [case.outcome for case in done.cases] == ["timeout"] * 3 + ["skipped"] * 2
    assert (done.outcome, done.limit, done.tests_run) == ("timeout", "wall", 3)


async def test_right_output_and_a_wrong_exit_code_is_no_pass(grade: Grade) -> None:
    done = await grade(SQUARE + "\nraise SystemExit(1)", mode="stdin", cases=(Case(stdin="2", expected="4"),))
    assert (done.outcome, done.cases[0].outcome) == ("failed", "error")


async def test_a_syntax_error_ends_mode_stdin_at_once(grade: Grade) -> None:
    done = await grade("print(", mode="stdin", cases=(Case(stdin="2", expected="4"),) * 9)
    assert (done.outcome, done.compiled, done.error_type, done.tests_run) == ("error", False, "SyntaxError", 0)


@pytest.mark.parametrize(
    ("written", "expected", "is_right"),
    [
        ("a\nb\n", "a\nb", True), ("a  \nb\n\n\n", "a\nb", True), ("a\n\nb", "a\nb", False), (" a", "a", False),
        ("", "\n", True), ("a", "A", False), ("a\r\nb\r\n", "a\nb\n", True), ("1 2", "1  2", False),
        ("0.3000000001", "0.3", False), ("", "a", False),
    ],
)  # fmt: skip
async def test_space_at_the_ends_of_lines_does_not_count(written: str, expected: str, is_right: bool) -> None:
    assert (find_difference(written, Case(stdin="", expected=expected)) == "") is is_right


@pytest.mark.parametrize(
    ("written", "expected", "is_right"),
    [
        ("0.30000000001 x", "0.3 x", True),
        ("1 2", "1  2", True),
        ("1.1", "1.0", False),
        ("x", "y", False),
        ("1", "1 2", False),
        ("nan", "1", False),
    ],
)
async def test_numbers_in_output_may_be_close(written: str, expected: str, is_right: bool) -> None:
    assert (find_difference(written, Case(stdin="", expected=expected, compare="approx")) == "") is is_right


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "stdin"}, "needs cases"),
        ({"mode": "stdin", "cases": (Case(args="(1,)", expected="1"),)}, "case 0 has no stdin"),
        ({"mode": "function", "cases": (Case(expected="1"),)}, "needs entry_point"),
        ({"mode": "function", "entry_point": "f"}, "needs cases, or a checker"),
        ({"mode": "function", "entry_point": "f(", "cases": (Case(expected="1"),)}, "names no function"),
        ({"mode": "function", "entry_point": "a.b.c", "cases": (Case(expected="1"),)}, "names no function"),
        (
            {"mode": "function", "entry_point": "f", "cases": (Case(args="f(", expected="1"),)},
            "args of case 0 is no Python literal",
        ),
        ({"mode": "function", "entry_point": "f", "cases": (Case(args="1", expected="1"),)}, "no tuple and no list"),
        ({"mode": "function", "entry_point": "f", "cases": (Case(kwargs="{1: 2}", expected="1"),)}, "no dict of names"),
        ({"mode": "function", "entry_point": "f", "cases": (Case(),)}, "case 0 expects nothing"),
        ({"mode": "function", "entry_point": "f", "cases": (Case(expected="open('x')"),)}, "no Python literal"),
        ({"mode": "function", "entry_point": "f", "cases": (Case(expected="(" * 9999),)}, "no Python literal"),
        ({"mode": "function", "entry_point": "f", "cases": (Case(expected="[" * 90 + "]" * 90),)}, "nested deeper than 60"),
        ({"mode": "function", "entry_point": "f", "cases": (Case(expected="[" + "(1)," * 90_000 + "]"),)}, "not JSON as well"),
        ({"mode": "function", "entry_point": "f", "cases": (Case(stdin="x", expected="1"),)}, "use mode stdin"),
        ({"mode": "function", "entry_point": "f", "test_code": "assert f()", "cases": (Case(expected="1"),)}, "not both"),
        ({"mode": "pytest"}, "needs test_code"),
        ({"language": "cobol"}, "no language is called 'cobol'"),
        ({"language": "go", "mode": "pytest", "test_code": "x"}, "is for Python"),
        ({"files": {"../x": ""}}, "not relative and plain"),
        ({"files": {"/x": ""}}, "not relative and plain"),
        ({"files": {"a//b": ""}}, "not relative and plain"),
        ({"files": {"a\n": ""}}, "not relative and plain"),
        ({"files": {"": ""}}, "not relative and plain"),
        ({"files": {"a": "", "a/b": ""}}, "lies below another file"),
        ({"files": {"x" * 300: ""}}, "not relative and plain"),
        ({"files": {f"{number}": "" for number in range(1001)}}, "1000 are the most"),
        ({"files": {"x": "y" * (33 << 20)}}, "half of disk_bytes"),
        ({"stdin": "\ud800"}, "half a surrogate pair"),
        ({"files": {"x": "\ud800"}}, "half a surrogate pair"),
        ({"cases": (Case(),) * 1001}, "1000 are the most"),
        ({"cases": (Case(tolerance=-1.0),)}, "a tolerance of -1.0"),
        ({"cases": (Case(tolerance=float("nan")),)}, "a tolerance of nan"),
    ],
)
async def test_a_program_that_makes_no_sense_is_refused_and_it_is_said_why(
    grade: Grade, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(BadRequest) as refusal:
        await grade("pass", **fields)
    assert message in refusal.value.message


@pytest.mark.parametrize("code", ["x = '\ud800'", "#" * (2 << 20)])
async def test_code_that_no_file_can_hold_is_refused(grade: Grade, code: str) -> None:
    with pytest.raises(BadRequest, match="code h"):
        await grade(code)


async def test_a_linted_program_has_a_score_and_a_list(grade: Grade) -> None:
    done = await grade('"""Text."""\nimport os\n\n\ndef add(left):\n    """Text."""\n    return left + rihgt\n', mode="lint")
    assert (done.outcome, done.compiled) == ("completed", True)
    assert done.lint_score is not None
    assert 0 <= done.lint_score < 10
    assert "E0602: Undefined variable 'rihgt' (undefined-variable)" in done.stdout
    clean = await grade('"""Text."""\n', mode="lint")
    assert (clean.lint_score, clean.stdout) == (10.0, "") or clean.lint_score == 0.0


async def test_a_linter_reads_no_configuration_of_the_code(grade: Grade) -> None:
    files = {"pylintrc": '[MAIN]\ninit-hook=\'open("hooked", "w")\'\ndisable=all\n', "ruff.toml": "select = []\n"}
    done = await grade("import os\n", mode="lint", files=files)
    assert "unused-import" in done.stdout
