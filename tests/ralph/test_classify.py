"""What asks for code that can be run, and what does not."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.ralph.classify import asks_for_code, is_coding_task, request_of
from atlas.types import Message, Prompt, Tool
from nano.benchmark import load_benchmark
from tests.ralph.classified import CODE, OTHER, measure

ASKED = Prompt(messages=(Message(role="user", content="Write a function f(x) that adds one."),))


def test_the_figures_of_its_docstring_hold() -> None:
    found, num_code, passed, num_other = measure()
    assert (num_code, num_other) == (32, 32)
    assert (found, passed) == (31, 32)


def test_nothing_of_the_first_half_is_classified_wrongly() -> None:
    assert [text for text in CODE[:30] if not asks_for_code(text)] == []
    assert [text for text in OTHER[:30] if asks_for_code(text)] == []


def test_every_benchmark_task_is_a_coding_task() -> None:
    assert all(asks_for_code(task.prompt) for task in load_benchmark())


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(messages=ASKED.messages, tools=(Tool(name="grep"),)),
        Prompt(messages=ASKED.messages, json_schema={}),
        Prompt(messages=ASKED.messages, grammar='root ::= "a"'),
        Prompt(messages=(*ASKED.messages, Message(role="assistant", content="def f"))),
        Prompt(messages=(Message(role="tool", content="1"), *ASKED.messages)),
        Prompt(text="Write a function f(x) that adds one."),
    ],
    ids=["tools", "schema", "grammar", "continued", "after a tool", "raw text"],
)
def test_what_the_loop_cannot_answer_passes_through(prompt: Prompt) -> None:
    assert is_coding_task(ASKED)
    assert not is_coding_task(prompt)


def test_a_chat_becomes_a_request_with_its_history() -> None:
    said = (Message(role="system", content="Be brief."), Message(role="user", content="Hi"), *ASKED.messages)
    request = request_of(Prompt(messages=said, model="nano", deadline_s=9))
    assert (request.task, request.history, request.model, request.deadline_s) == (said[-1].content, said[:-1], "nano", 9)


@settings(max_examples=100)
@given(st.text(max_size=300))
def test_no_text_makes_it_fail(text: str) -> None:
    assert asks_for_code(text) in (True, False)


@pytest.mark.parametrize("text", ["write " * 20_000, "f(" * 20_000, "```" * 20_000, "input\n" * 20_000, "def f(" * 9000])
def test_hostile_messages_are_classified_in_seconds(text: str) -> None:
    started_s = time.monotonic()
    asks_for_code(text)
    assert time.monotonic() - started_s < 10
