from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from atlas.bench.formats import READERS, UNPACKED_LIMIT_BYTES, read_line, read_tasks
from atlas.bench.judge import HiddenTests
from atlas.bench.values import Task
from atlas.errors import OperatorError
from atlas.types import Case

HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": """from math import gcd


def twice(x):
    return 2 * x


def half(x):
    \'\'\' Undo twice.
    >>> half(4)
    2
    \'\'\'
""",
    "entry_point": "half",
    "canonical_solution": "    return x // 2\n",
    "test": "def check(candidate):\n    assert candidate(twice(3)) == 3\n    assert candidate(gcd(8, 12)) == 2\n",
}
MBPP = {
    "text": "Write a function to add one to each number.",
    "code": "def add_one(xs): return {x + 1 for x in xs}",
    "task_id": 12,
    "test_setup_code": "import math",
    "test_list": ["assert set(add_one([1])) == set((2,))", "assert add_one([]) == set()"],
    "challenge_test_list": ["assert add_one([-1]) == {0}"],
}


def packed(cases: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


LIVE: dict[str, Any] = {
    "question_id": "abc1",
    "question_content": "Add the numbers.",
    "difficulty": "easy",
    "starter_code": "",
    "metadata": "{}",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "private_test_cases": packed([{"input": "5 5\n", "output": "10\n", "testtype": "stdin"}]),
}


def read(kind: str, *rows: object) -> list[Task]:
    data = b"\n".join(json.dumps(row).encode() for row in rows)
    return list(read_tasks(data, READERS.get(kind, read_line), source="given.jsonl"))


def test_humaneval_shows_its_docstring_and_gives_its_checks_the_prompts_helpers() -> None:
    [task] = read("humaneval", HUMANEVAL)
    assert (task.id, task.entry_point) == ("HumanEval/900", "half")
    assert HUMANEVAL["prompt"] in task.task
    assert task.visible.code == ""
    assert "candidate" not in task.task
    hidden = task.judge.hidden.code
    assert "def twice" in hidden
    assert "from math import gcd" in hidden
    assert "def half" not in hidden


def test_mbpp_shows_one_assert_and_keeps_the_others() -> None:
    [task] = read("mbpp", MBPP)
    assert task.entry_point == "add_one"
    assert task.visible.code == "import math\nassert set(add_one([1])) == set((2,))"
    assert "add_one([])" in task.judge.hidden.code
    assert "add_one([-1])" in task.judge.stronger.code
    assert "[-1]" not in task.judge.hidden.code + task.visible.code + task.task


def test_mbpp_leaves_out_what_is_not_of_the_test_split() -> None:
    assert [task.id for task in read("mbpp", MBPP | {"task_id": 3}, MBPP, MBPP | {"task_id": 700})] == ["mbpp/12"]


def test_the_sanitized_mbpp_is_one_array_and_all_of_it_counts() -> None:
    row = {"prompt": "Add one.", "task_id": 2, "test_imports": ["import re"], "test_list": MBPP["test_list"]}
    data = json.dumps([row, row | {"task_id": 900}]).encode()
    tasks = list(read_tasks(data, READERS["mbpp"], source="sanitized-mbpp.json"))
    assert [(task.id, task.task) for task in tasks] == [("mbpp/2", "Add one."), ("mbpp/900", "Add one.")]
    assert tasks[0].judge.stronger.is_empty


def test_livecodebench_shows_public_cases_and_unpacks_private_ones() -> None:
    [task] = read("livecodebench", LIVE)
    assert task.visible.cases == (Case(stdin="1 2\n", expected="3\n"),)
    assert task.judge.hidden.cases == (Case(stdin="1 2\n", expected="3\n"), Case(stdin="5 5\n", expected="10\n"))
    assert (task.group, task.entry_point) == ("easy", "")


def test_livecodebench_methods_are_called_with_one_argument_a_line() -> None:
    case = {"input": '[1, 2]\n"a"', "output": "[true, null]", "testtype": "functional"}
    row = LIVE | {
        "metadata": json.dumps({"func_name": "find"}),
        "starter_code": "class Solution:\n    def find(self, xs, a):\n        ",
        "public_test_cases": json.dumps([case]),
        "private_test_cases": json.dumps([case]),
    }
    [task] = read("livecodebench", row)
    assert task.entry_point == task.judge.entry_point == "Solution.find"
    assert task.visible.cases[0] == Case(args="[[1, 2], 'a']", expected="[True, None]", compare="json")
    assert "class Solution" in task.task


def test_a_pickle_that_names_code_is_refused_and_nothing_of_it_runs() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.putenv, ("TRAPPED",)

    hostile = base64.b64encode(zlib.compress(pickle.dumps(Trap()))).decode()
    with pytest.raises(OperatorError, match=r"given\.jsonl, task 1: private cases name posix\.putenv; only text is read"):
        read("livecodebench", LIVE | {"private_test_cases": hostile})


def test_private_cases_that_unpack_without_end_are_refused() -> None:
    squeeze = zlib.compressobj(1)
    block = bytes(1024 * 1024)
    zipped = b"".join(squeeze.compress(block) for _ in range(UNPACKED_LIMIT_BYTES // len(block) + 1)) + squeeze.flush()
    with pytest.raises(OperatorError, match="larger than"):
        read("livecodebench", LIVE | {"private_test_cases": base64.b64encode(zipped).decode()})


OURS: dict[str, Any] = {"id": "a", "task": "Add.", "entry_point": "add", "hidden": {"cases": [{"args": [1, 2], "expected": 3}]}}


def test_our_own_lines_say_what_is_shown_hidden_and_stronger() -> None:
    row = OURS | {
        "group": "easy",
        "visible": {"code": "assert add(1, 1) == 2"},
        "stronger": {"cases": [{"args": "(0.1, 0.2)", "expected": "0.3", "compare": "approx", "tolerance": 1e-9}]},
        "wall_s": 3,
    }
    [task] = read("", row)
    assert task.judge.hidden == HiddenTests(cases=(Case(args="[1, 2]", expected="3", compare="json"),))
    assert task.judge.stronger.cases[0].compare == "approx"
    assert (task.visible.code, task.group, task.limits.wall_s, task.judge.limits.wall_s) == (
        "assert add(1, 1) == 2",
        "easy",
        3.0,
        3.0,
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (OURS | {"hiden": {}}, "task 2: Object contains unknown field `hiden`"),
        (
            OURS | {"hidden": {"cases": [{"arg": [1]}]}},
            r"task 2: Object contains unknown field `arg` - at `\$\.hidden\.cases\[0\]`",
        ),
        (OURS | {"hidden": {"cases": [{"args": [1]}]}}, "task 2: hidden, case 0: a case needs `expected`"),
        (OURS | {"hidden": {}}, r"task 2 \('a'\) has no hidden tests: nothing could be measured by it"),
        ({"id": "a"}, "task 2: Object missing required field `task`"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(row: dict[str, Any], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        read("", OURS | {"id": "first"}, row)
