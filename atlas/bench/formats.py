"""Task files as others write them, read into ours: HumanEval, MBPP (both editions), LiveCodeBench; and our own lines.

The visible tests are what each data set shows whoever is asked: the examples in HumanEval's docstring, the first assert of MBPP,
the public cases of LiveCodeBench. Everything else goes to the judge.
"""

from __future__ import annotations

import ast
import base64
import builtins
import io
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from atlas.bench.judge import HiddenTests, Judge
from atlas.bench.values import Task
from atlas.errors import AtlasError, OperatorError
from atlas.sandbox import CaseRequest
from atlas.types import Case, RunLimits, VisibleTests

MBPP_TEST_IDS = range(11, 511)  # of mbpp.jsonl, by its README; others are for prompting, tuning and training
LIVECODEBENCH_WALL_S = 6.0  # of one case, as its own runner allows
UNPACKED_LIMIT_BYTES = 256 * 1024 * 1024  # of one task's private cases

COMPLETE = "Complete this Python function. Write the whole of it, with the imports and helper functions it needs.\n\n"
STARTER = "\n\nUse this starting point:\n\n"


class _TestsLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    code: str = ""
    cases: tuple[CaseRequest, ...] = ()

    def read(self, where: str) -> tuple[Case, ...]:
        return tuple(case.case(f"{where}, case {number}") for number, case in enumerate(self.cases))


class _TaskLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a task file of ours; docs/bench.md describes it."""

    id: str
    task: str
    hidden: _TestsLine
    entry_point: str = ""
    language: str = "python"
    group: str = ""
    files: dict[str, str] = {}
    visible: _TestsLine = _TestsLine()
    stronger: _TestsLine = _TestsLine()
    wall_s: float = RunLimits().wall_s


class _HumanEval(msgspec.Struct, frozen=True):
    task_id: str
    prompt: str
    entry_point: str
    test: str


class _Mbpp(msgspec.Struct, frozen=True):
    task_id: int
    test_list: list[str]
    text: str = ""  # mbpp.jsonl
    prompt: str = ""  # sanitized-mbpp.json
    test_setup_code: str = ""
    test_imports: list[str] = []
    challenge_test_list: list[str] = []


class _LiveCodeBench(msgspec.Struct, frozen=True):
    question_id: str
    question_content: str
    public_test_cases: str
    private_test_cases: str
    starter_code: str = ""
    metadata: str = "{}"
    difficulty: str = ""


class _LiveCase(msgspec.Struct, frozen=True):
    input: str
    output: str
    testtype: Literal["stdin", "functional"] = "stdin"


def read_line(line: bytes) -> Task:
    """A line in our own format."""
    found = msgspec.json.decode(line, type=_TaskLine)
    limits = RunLimits(wall_s=found.wall_s, cpu_s=found.wall_s)
    judge = Judge(
        entry_point=found.entry_point,
        language=found.language,
        files=found.files,
        limits=limits,
        hidden=HiddenTests(code=found.hidden.code, cases=found.hidden.read("hidden")),
        stronger=HiddenTests(code=found.stronger.code, cases=found.stronger.read("stronger")),
    )
    return Task(
        id=found.id,
        task=found.task,
        judge=judge,
        entry_point=found.entry_point,
        language=found.language,
        visible=VisibleTests(code=found.visible.code, cases=found.visible.read("visible")),
        files=found.files,
        limits=limits,
        group=found.group,
    )


def read_humaneval(line: bytes) -> Task:
    """openai/human-eval; its checks may call helper functions of the prompt, which stand before them here."""
    found = msgspec.json.decode(line, type=_HumanEval)
    helpers = _without(found.prompt, found.entry_point)
    judge = Judge(entry_point=found.entry_point, hidden=HiddenTests(code=f"{helpers}\n{found.test}\n"))
    return Task(id=found.task_id, task=COMPLETE + found.prompt, judge=judge, entry_point=found.entry_point)


def read_mbpp(line: bytes) -> Task | None:
    """google-research/mbpp: the first assert is shown. None for what is not of the test split."""
    found = msgspec.json.decode(line, type=_Mbpp)
    if found.text and found.task_id not in MBPP_TEST_IDS:
        return None
    setup = "\n".join([*found.test_imports, found.test_setup_code])
    name = _called(found.test_list)
    challenge = "\n".join([setup, *found.challenge_test_list]) if found.challenge_test_list else ""
    judge = Judge(
        entry_point=name,
        hidden=HiddenTests(code="\n".join([setup, *found.test_list])),
        stronger=HiddenTests(code=challenge),
    )
    visible = VisibleTests(code="\n".join([setup, found.test_list[0]]).strip())
    return Task(id=f"mbpp/{found.task_id}", task=found.prompt or found.text, judge=judge, entry_point=name, visible=visible)


def read_livecodebench(line: bytes) -> Task:
    """livecodebench/code_generation_lite: programs on stdin, or methods of a class Solution."""
    found = msgspec.json.decode(line, type=_LiveCodeBench)
    name = json.loads(found.metadata or "{}").get("func_name", "")
    entry_point = f"Solution.{name}" if name else ""
    limits = RunLimits(wall_s=LIVECODEBENCH_WALL_S, cpu_s=LIVECODEBENCH_WALL_S)
    public, private = _live_cases(found.public_test_cases), _live_cases(_unpacked(found.private_test_cases))
    judge = Judge(entry_point=entry_point, hidden=HiddenTests(cases=(*public, *private)), limits=limits)
    starter = f"{STARTER}```python\n{found.starter_code.rstrip()}\n```" if found.starter_code.strip() else ""
    return Task(
        id=found.question_id,
        task=found.question_content + starter,
        judge=judge,
        entry_point=entry_point,
        visible=VisibleTests(cases=public),
        limits=limits,
        group=found.difficulty,
    )


READERS: dict[str, Callable[[bytes], Task | None]] = {
    "humaneval": read_humaneval,
    "mbpp": read_mbpp,
    "livecodebench": read_livecodebench,
}


def read_tasks(data: bytes, reader: Callable[[bytes], Task | None], *, source: str) -> Iterator[Task]:
    """Tasks of a file: JSON lines, or one JSON array of the same objects.

    Raises:
        OperatorError: a line is not what the reader reads; the message names it.
    """
    for number, line in enumerate(_lines(data, source), 1):
        try:
            task = reader(line)
        except (msgspec.DecodeError, AtlasError, ValueError, KeyError) as error:
            raise OperatorError(f"{source}, task {number}: {error}") from None
        if task is None:
            continue
        if task.judge.hidden.is_empty:
            raise OperatorError(f"{source}, task {number} ('{task.id}') has no hidden tests: nothing could be measured by it")
        yield task


def _lines(data: bytes, source: str) -> list[bytes]:
    if not data.lstrip().startswith(b"["):
        return [line for line in data.split(b"\n") if line.strip()]
    try:
        return [bytes(item) for item in msgspec.json.decode(data, type=list[msgspec.Raw])]
    except msgspec.DecodeError as error:
        raise OperatorError(f"{source} is no JSON: {error}") from None


def _without(prompt: str, entry_point: str) -> str:
    """What stands in a prompt beside the function that is asked for; a checker may call it."""
    tree = ast.parse(prompt)
    rest = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == entry_point)]
    return "\n".join(map(ast.unparse, rest))


def _called(asserts: list[str]) -> str:
    """The function that the first assert tests: what is called, and is no builtin and no method."""
    called = [node.func for node in ast.walk(ast.parse(asserts[0])) if isinstance(node, ast.Call)]
    names = [node.id for node in called if isinstance(node, ast.Name) and not hasattr(builtins, node.id)]
    if not names:
        raise ValueError(f"no function is called in {asserts[0]!r}")
    return names[0]


def _live_cases(text: str) -> tuple[Case, ...]:
    return tuple(map(_live_case, msgspec.json.decode(text, type=list[_LiveCase])))


def _live_case(found: _LiveCase) -> Case:
    """Arguments stand one a line, as JSON; so does the result."""
    if found.testtype == "stdin":
        return Case(stdin=found.input, expected=found.output)
    args = [json.loads(line) for line in found.input.splitlines() if line.strip()]
    return Case(args=repr(args), expected=repr(json.loads(found.output)), compare="json")


def _unpacked(text: str) -> str:
    """JSON, or the base64 of a zipped pickle of JSON text, in which nothing but text is accepted."""
    if text.lstrip().startswith("["):
        return text
    unpacking = zlib.decompressobj()
    raw = unpacking.decompress(base64.b64decode(text), UNPACKED_LIMIT_BYTES)
    if unpacking.unconsumed_tail:
        raise ValueError(f"private cases are larger than {UNPACKED_LIMIT_BYTES} bytes")
    found = _TextOnly(io.BytesIO(raw)).load()
    if not isinstance(found, str):
        raise ValueError("private cases are no text")
    return found


class _TextOnly(pickle.Unpickler):
    """Unpickles basic values only: no name is looked up, so no code can be called."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"private cases name {module}.{name}; only text is read")
