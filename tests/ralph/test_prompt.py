"""The prompts of the platform, as texts."""

from __future__ import annotations

import pytest

from atlas.ralph import extract_code, prompt, prompt_hash, repair, rewrite, solve, write_tests
from atlas.types import Example, Failure, Snippet

EXAMPLES = (Example(call="f([1])", result="1"), Example(call="f([])", result="0"))


def test_a_bare_task_is_one_user_message() -> None:
    (message,) = solve("Write f(xs).", system=None)
    assert (message.role, message.content) == ("user", "Write f(xs).")


def test_slots_stand_in_order_around_the_task() -> None:
    system, user = solve("TASK", examples=EXAMPLES, context=(Snippet(path="a.py", text="a = 1\n"),), hint="sum it")
    assert system.role == "system"
    assert user.content == (
        "These snippets may help:\n\na.py\n```python\na = 1\n```\n\nTASK\n\nExamples:\nassert f([1]) == 1\nassert f([]) == 0\n\n"
        "Hint: sum it"
    )


def test_doctest_examples_show_the_call_and_then_its_result() -> None:
    assert solve("T", examples=EXAMPLES, doctest=True)[-1].content == "T\n\nExamples:\n>>> f([1])\n1\n>>> f([])\n0"


def test_repair_keeps_the_conversation_and_shows_both_values() -> None:
    asked = solve("T")
    *before, answer, feedback = repair(asked, "bad", Failure(call="f(1)", expected="2", returned="3"))
    assert tuple(before) == asked
    assert (answer.role, answer.content) == ("assistant", "bad")
    assert "assert f(1) == 2\n- expected 2\n+ returned 3" in feedback.content


def test_repair_shows_a_traceback_as_it_is() -> None:
    trace = "Traceback (most recent call last):\n  File \"solution.py\", line 2, in f\nNameError: name 'ys' is not defined\n"
    assert trace.rstrip() in repair(solve("T"), "bad", Failure(traceback=trace))[-1].content


def test_write_tests_and_rewrite_name_the_function() -> None:
    assert "4 assert statements that test f." in write_tests("T", "f")[-1].content
    assert "Rewrite the function f as" in rewrite("T", "f", Snippet(path="a.py", text="def f(): pass\n"))[-1].content


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Here:\n```\nx = 1\n```\nor\n```py\nx = 2\n```", "x = 2\n"),
        ("x = 1", "x = 1"),
    ],
)
def test_code_is_read_from_the_last_block(answer: str, code: str) -> None:
    assert extract_code(answer) == code


@pytest.mark.parametrize("name", ["CONTEXT", "SNIPPET", "EXAMPLES", "HINT", "WRITE_TESTS", "REWRITE", "EDIT", "CRASH"])
def test_the_hash_changes_with_every_template(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prompt_hash()
    monkeypatch.setattr(prompt, name, getattr(prompt, name) + ".")
    assert prompt_hash() != before


def test_the_hash_is_stable() -> None:
    assert prompt_hash() == prompt_hash()
