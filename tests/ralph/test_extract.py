"""Code is read from whatever a model says around it, and nothing it says makes the reader fail."""

from __future__ import annotations

import ast
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.ralph.extract import read_code, split_blocks

F = "def f(x):\n    return x + 1\n"
HELPER = "def twice(x):\n    return 2 * x\n"

SAID = {
    "bare": F,
    "one fence": f"```python\n{F}```",
    "prose around": f"Sure! Here it is:\n\n```python\n{F}```\n\nThis adds one.",
    "no language": f"```\n{F}```",
    "capitals": f"```Python\n{F}```",
    "tilde fence": f"~~~python\n{F}~~~",
    "long fence": f"````python\n{F}````",
    "unclosed fence": f"Here:\n```python\n{F}",
    "unclosed fence and prose after": f"```python\n{F}\nThis function adds one to its argument, as you asked.",
    "fence glued to the code": "```python\ndef f(x):\n    return x + 1```",
    "one line": "```python def f(x): return x + 1```",
    "no fence, prose around": f"Here is the function:\n\n{F}\nIt adds one to x, and that's all.",
    "no fence, prose before": f"Certainly, I'd do it so:\n{F}",
    "usage after": f"```python\n{F}```\nUse it:\n```python\nprint(f(1))\n```",
    "shell before": f"```bash\npip install nothing\n```\n```python\n{F}```",
    "output after": f"```python\n{F}```\nOutput:\n```text\n2\n```",
    "tests after": f"```python\n{F}```\n```python\ndef test_f():\n    assert f(1) == 2\n```",
    "another function after": f"```python\n{F}```\nand\n```python\n{HELPER}```",
    "thinking": f"<think>\nMaybe ```python\ndef f(x): return x\n``` no.\n</think>\n\n```python\n{F}```",
    "code in an open thought": f"<think>\nI would write\n```python\n{F}```\n",
    "in a list": "1. Do this:\n   ```python\n   def f(x):\n       return x + 1\n   ```\n2. Done.",
    "indented": "```python\n    def f(x):\n        return x + 1\n```",
    "first line lost its indentation": "```python\ndef f(x):\n        return x + 1\n    \n```",
    "body at the depth of def": "```python\ndef f(x):\ny = x\nreturn y + 1\n```",
    "dedent to nowhere": "```python\ndef f(x):\n    if x:\n        y = x\n     \n   \n    return x + 1\n```",
    "session": "```\n>>> def f(x):\n...     return x + 1\n...\n>>> f(1)\n2\n```",
    "carriage returns": "```python\r\ndef f(x):\r\n    return x + 1\r\n```",
    "tabs and spaces": "```python\ndef f(x):\n\ty = x\n        return y + 1\n```",
    "no-break spaces": "```python\ndef f(x):\n\u00a0\u00a0\u00a0\u00a0return x + 1\n```",
    "fence in a docstring": '```python\ndef f(x):\n    """Add one.\n\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n```',
    "doctest in a docstring": '```python\ndef f(x):\n    """Add one.\n    >>> f(1)\n    2\n    """\n    return x + 1\n```',
    "quoted": "> ```python\n" + F + "```",
}


@pytest.mark.parametrize("answer", SAID.values(), ids=SAID.keys())
def test_the_function_that_was_asked_for_is_read(answer: str) -> None:
    code = read_code(answer, "f")
    space: dict[str, object] = {}
    exec(compile(code, "read", "exec"), space)
    f = space["f"]
    assert callable(f)
    assert f(41) == 42


def test_a_helper_from_another_block_comes_along() -> None:
    code = read_code(f"First:\n```python\n{HELPER}```\nThen:\n```python\ndef f(x):\n    return twice(x)\n```", "f")
    assert [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)] == ["twice", "f"]


def test_an_unrelated_block_does_not() -> None:
    assert "twice" not in read_code(f"```python\n{HELPER}```\n```python\n{F}```", "f")


def test_of_two_versions_the_last_is_meant() -> None:
    assert "+ 2" in read_code("```python\ndef f(x): return x + 1\n```\nBetter:\n```python\ndef f(x): return x + 2\n```", "f")


def test_without_a_name_the_last_block_with_a_definition_is_meant() -> None:
    assert read_code(f"```python\n{F}```\n```python\nprint(f(1))\n```") == F


def test_a_method_is_found_by_its_class() -> None:
    answer = "```python\nclass Solution:\n    def run(self): return 1\n```\n```python\nprint(1)\n```"
    assert "class Solution" in read_code(answer, "Solution.run")


def test_code_with_a_mistake_is_not_mistaken_for_the_examples_in_its_docstring() -> None:
    code = 'def f(x):\n    """\n    >>> f(1)\n    2\n    """\n    return (x + 1\n'
    assert read_code(f"```python\n{code}```", "f") == code


def test_code_with_a_mistake_is_handed_on_with_it() -> None:
    assert read_code("```python\ndef f(x):\n    return (x + 1\n```", "f") == "def f(x):\n    return (x + 1\n"


@pytest.mark.parametrize(
    "answer", ["", "I cannot do that.", "Sorry", "42", "```python\n```", "<think>hm", "```text\nhello there\n```"]
)
def test_no_code_is_said_to_be_none(answer: str) -> None:
    assert read_code(answer, "f") == ""


def test_another_language_is_taken_from_its_fence() -> None:
    answer = "```bash\ngo run .\n```\n```go\npackage main\n```\nand\n```text\nhi\n```"
    assert read_code(answer, language="go") == "package main\n"


def test_half_a_surrogate_pair_is_left_out() -> None:
    assert read_code("```python\nx = '\ud800'\n```") == "x = ''\n"


def test_blocks_keep_their_order_and_language() -> None:
    blocks = split_blocks("a\n```py\n1\n```\nb\n~~~\n2\n~~~\n```json\n{}")
    assert [(block.language, block.text.strip(), block.is_closed) for block in blocks] == [
        ("py", "1", True),
        ("", "2", True),
        ("json", "{}", False),
    ]


FENCES = ["```", "```python\n", "~~~", "<think>", "</think>", '"""', "'''", ">>> ", "... "]
LINES = ["def f(x):\n", "    return x\n", "class A:\n", "if x:", "Some prose. ", "x = 1\n", "    ", "\t", "\n", "\r\n"]
ODDITIES = ["(((", ")]}", "\\", "\x00", "\ud800", "\u00a0", "é", "#", ":"]
PIECES = st.sampled_from([*FENCES, *LINES, *ODDITIES])


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=400), st.lists(PIECES, max_size=40).map("".join)), st.sampled_from(["", "f", "A.f", "("]))
def test_no_text_makes_the_reader_fail(text: str, name: str) -> None:
    code = read_code(text, name)
    code.encode()
    assert code == "" or code.strip()


@pytest.mark.parametrize(
    "text", ["(" * 100_000, "-" * 200_000, "def f(x):\n" * 5000, "x = [" * 50_000, "```\n" * 20_000, "a:\n" * 50_000]
)
def test_hostile_answers_are_read_in_seconds(text: str) -> None:
    started_s = time.monotonic()
    read_code(text, "f")
    assert time.monotonic() - started_s < 30
