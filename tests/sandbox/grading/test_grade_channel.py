"""Whatever comes out of a box: the grader neither breaks nor believes it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.sandbox.boxes import BoxResult, BoxSpec
from atlas.sandbox.grade import execute
from atlas.sandbox.inside import proxies, values
from atlas.sandbox.inside.frames import Channel
from atlas.sandbox.languages import available
from atlas.sandbox.supervision import parse_frames
from atlas.sandbox.transcript import Forged, read
from atlas.types import Case, Execution, Program, RunLimits, Tier
from tests.sandbox.grading.test_values import JSON

SECRET = "'expected-and-never-sent'"
PROGRAMS = {
    "cases": Program(code="", mode="function", entry_point="f", cases=(Case(expected=SECRET), Case(expected=SECRET))),
    "tests": Program(code="", mode="pytest", test_code="from solution import f\nL = lambda: 0\ndef test(): assert f() == 1"),
    "checker": Program(code="", mode="function", entry_point="f", test_code="assert f(lambda: 0) == 1"),
    "inputs": Program(code="", mode="stdin", cases=(Case(stdin="", expected=SECRET),)),
    "compiled": Program(code="", language="c", mode="stdin", cases=(Case(stdin="", expected=SECRET),)),
    "run": Program(code=""),
    "lint": Program(code="", mode="lint"),
}
if "C" not in available():
    del PROGRAMS["compiled"]
WORDS = st.sampled_from([
    "loaded", "compile", "compiled", "fault", "missing", "case", "value", "strange", "seconds", "end", "test", "when",
    "outcome", "text", "type", "message", "errno", "line", "trace", "collected", "broken", "lost", "is_forged",
    "tampering", "nonce", "absent", "score", "messages", "raised", "exit", "stdout", "stderr", "passed", "setup",
    "call", "teardown", "test_solution.py::test", "MemoryError",
])  # fmt: skip
LEAVES = WORDS | st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(st.characters(codec=None), max_size=5)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=10
)
PHASES = [{"test": "test_solution.py::test", "when": when, "outcome": "passed"} for when in ("setup", "call", "teardown")]
LIKELY = st.sampled_from([
    {"loaded": True}, {"case": 0, "value": 1, "seconds": 0.0}, {"case": 1, "value": 1}, {"end": 2}, {"end": 0}, {"end": 1},
    {"compiled": True}, {"collected": ["test_solution.py::test"]}, *PHASES, {"test": "x", "when": "call", "outcome": "passed"},
    {"score": 10.0, "messages": []}, {"case": 0, "exit": 0, "stdout": "", "stderr": "", "seconds": 0.0},
    {"case": 0, "value": None}, {"fault": {"type": "MemoryError"}},
])  # fmt: skip
FRAMES = st.lists(LIKELY | ANYTHING | JSON, max_size=8)


class Hostile:
    """A tier whose boxes are in the hands of what runs in them."""

    tier: Tier = "native"
    slots = num_zygotes = 1
    num_restarts = 0

    def __init__(self, result: BoxResult) -> None:
        self._result = result

    async def warm_up(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def run(self, spec: BoxSpec) -> BoxResult:
        return self._result

    async def run_pair(self, tests: BoxSpec, candidate: BoxSpec) -> tuple[BoxResult, BoxResult]:
        return self._result, self._result


def judge(program: Program, result: BoxResult) -> Execution:
    """What the grader makes of a box's words; nothing in it waits for anything."""
    coroutine = execute(program, RunLimits(), Hostile(result))
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    execution: Execution = stop.value.value
    msgspec.msgpack.encode(execution)  # it can be sent on
    return execution


@pytest.mark.parametrize("name", PROGRAMS)
@given(frames=FRAMES, damaged=st.booleans(), exit_code=st.sampled_from([0, 0, 1, -9, -11, None]))
def test_no_frames_make_a_pass_of_what_was_not_proved(name: str, frames: list[Any], damaged: bool, exit_code: int | None) -> None:
    if name == "lint" and frames and isinstance(frames[0], dict) and "missing" in frames[0]:
        return
    sent = json.loads(json.dumps(frames))
    ending = "exit" if exit_code is not None else "wall"
    done = judge(PROGRAMS[name], BoxResult(ending=ending, exit_code=exit_code, frames=tuple(sent), is_damaged=damaged))  # type: ignore[arg-type]
    assert not done.passed
    assert done.outcome != "passed"


@pytest.mark.parametrize("name", PROGRAMS)
@given(report=st.binary(max_size=200), stdout=st.binary(max_size=50))
def test_no_bytes_make_a_pass_of_what_was_not_proved(name: str, report: bytes, stdout: bytes) -> None:
    frames, is_damaged = parse_frames(report)
    done = judge(
        PROGRAMS[name], BoxResult(ending="exit", exit_code=0, frames=tuple(frames), is_damaged=is_damaged, stdout=stdout)
    )
    assert done.outcome != "passed"


def frames_of_cases(*values: Any) -> tuple[Any, ...]:
    records = [{"case": number, "value": value, "seconds": 0.0} for number, value in enumerate(values)]
    return ({"loaded": True}, *records, {"end": len(values)})


RIGHT = frames_of_cases("expected-and-never-sent", "expected-and-never-sent")


def test_right_values_in_order_pass() -> None:
    """So that the tests above can fail."""
    assert judge(PROGRAMS["cases"], BoxResult(ending="exit", exit_code=0, frames=RIGHT)).passed


@pytest.mark.parametrize(
    "frames",
    [
        RIGHT[:-1], RIGHT[1:], (*RIGHT, RIGHT[-1]), (*RIGHT[:2], RIGHT[1], *RIGHT[2:]), (RIGHT[0], RIGHT[2], RIGHT[1], RIGHT[3]),
        (*RIGHT[:2], RIGHT[3]), (*RIGHT[:3], {"end": 1}), (RIGHT[0], *RIGHT), (*RIGHT[:3], {"end": 2, "passed": True}),
        (RIGHT[0], RIGHT[1] | {"case": "0"}, *RIGHT[2:]), (RIGHT[0], RIGHT[1] | {"outcome": "passed"}, *RIGHT[2:]),
        (RIGHT[0], {"case": 0}, *RIGHT[2:]), (RIGHT[0], RIGHT[1] | {"value": {"str": 3}}, *RIGHT[2:]),
    ],
)  # fmt: skip
def test_records_that_the_runner_does_not_write_so_are_no_pass(frames: tuple[Any, ...]) -> None:
    done = judge(PROGRAMS["cases"], BoxResult(ending="exit", exit_code=0, frames=frames))
    assert done.outcome in ("tampered", "error", "failed")


@pytest.mark.parametrize(("ending", "exit_code"), [("exit", 1), ("exit", -9), ("wall", None), ("memory", None), ("killed", None)])
def test_right_values_and_a_wrong_ending_are_no_pass(ending: Any, exit_code: int | None) -> None:
    assert not judge(PROGRAMS["cases"], BoxResult(ending=ending, exit_code=exit_code, frames=RIGHT)).passed


@pytest.mark.parametrize("seconds", [float("inf"), -1.0, 1e400])
def test_a_claimed_duration_is_no_number_we_add_up(seconds: float) -> None:
    frames = tuple(frame | {"seconds": seconds} if "case" in frame else frame for frame in RIGHT)
    assert [case.wall_s for case in judge(PROGRAMS["cases"], BoxResult(ending="exit", exit_code=0, frames=frames)).cases] == [
        0.0,
        0.0,
    ]


NONCE = "n" * 32
TRANSCRIPT = ({"loaded": True}, {"collected": ["test_solution.py::test"]}, *PHASES, {"end": 0})


@given(st.lists(st.sampled_from(TRANSCRIPT) | ANYTHING, max_size=8))
def test_frames_without_the_nonce_are_forged(frames: list[Any]) -> None:
    if not frames:
        return
    with pytest.raises(Forged):
        read(BoxResult(ending="exit", exit_code=0, frames=tuple(frames)), NONCE)


class Peer(Channel):
    """A candidate's box in hostile hands."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    def send(self, value: Any) -> None:
        json.dumps(value)

    def receive(self) -> Any:
        if not self._answers:
            raise EOFError
        return self._answers.pop(0)


ANSWER_WORDS = st.sampled_from(
    ["id", "value", "changed", "raised", "strange", "out", "lineage", "args", "state", "text", "trace"]
)
TAGGED = JSON | st.dictionaries(st.sampled_from(["object", "iterator", "method", "ref"]), st.integers(-1, 5), max_size=1)
KEYS = st.sampled_from(["builtins:ValueError", "builtins:Exception", "builtins:type", "builtins:print", "solution:X", "x"])
RAISED = st.fixed_dictionaries(
    {
        "lineage": st.lists(st.tuples(KEYS, st.lists(KEYS, max_size=2)).map(list), max_size=3),
        "args": st.lists(TAGGED, max_size=2),
        "state": st.dictionaries(st.sampled_from(["code", "args", "__class__"]), TAGGED, max_size=2),
        "text": JSON,
        "trace": JSON,
    }
)
ANSWERS = st.fixed_dictionaries(
    {"id": st.just(1) | st.integers(0, 3)},
    optional={
        "value": TAGGED,
        "strange": JSON,
        "out": JSON | st.lists(st.text(max_size=3), max_size=3),
        "changed": st.lists(st.tuples(st.integers(-1, 6), TAGGED).map(list), max_size=2) | JSON,
        "raised": RAISED | JSON,
    },
)


@given(answer=ANSWERS | JSON)
def test_what_a_candidate_answers_is_plain_or_a_violation(answer: Any) -> None:
    link = proxies.Link(Peer(json.loads(json.dumps(answer))))
    function = proxies.RemoteFunction(link, ["name", "f"])
    given_list = [1, [2]]
    try:
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            returned = function(given_list, key={"a": 1})
    except proxies.Violation:
        assert link.violations
        return
    except BaseException:
        if not isinstance(answer, dict) or "raised" not in answer:
            raise
        return
    if not isinstance(returned, proxies.Strange):
        assert_plain(returned)
    values.encode(given_list, [])


def assert_plain(value: Any) -> None:
    values.encode(value, [], extra=lambda part: 0 if isinstance(part, proxies.RemoteIterator) else None)


def test_a_strange_result_answers_nothing() -> None:
    link = proxies.Link(Peer({"id": 1, "strange": "a value of type X"}))
    strange = proxies.RemoteFunction(link, ["name", "f"])()
    looks: list[Callable[[Any], object]] = [bool, len, repr, str, hash, iter, int]
    looks += [lambda s: s == 4, lambda s: s != 4, lambda s: s < 4, lambda s: s + 1, lambda s: 1 + s, lambda s: 1 in s]
    looks += [lambda s: s.x, lambda s: s(), lambda s: s[0], lambda s: isinstance(s, int)]
    for look in looks:
        with pytest.raises(proxies.Violation, match="a value of type X"):
            look(strange)
    assert len(link.violations) == 17


def test_an_object_of_the_code_equals_nothing_but_itself() -> None:
    link = proxies.Link(Peer({"id": 1, "value": {"object": 0}}))
    made = proxies.RemoteFunction(link, ["name", "X"], "make")()
    assert made == made
    others: list[Any] = [4, "x", None, True, [], proxies.RemoteObject(link, 0)]
    for other in others:
        assert made != other
    for operate in (lambda: made + 1, lambda: made < 1, lambda: -made, lambda: int(made), lambda: made.__index__()):
        with pytest.raises((TypeError, AttributeError)):
            operate()


def test_an_object_comes_only_of_a_class_that_the_tests_use_as_one() -> None:
    link = proxies.Link(Peer({"id": 1, "value": {"object": 0}}))
    with pytest.raises(proxies.Violation, match="no answer"):
        proxies.RemoteFunction(link, ["name", "f"])()
    assert link.is_forged


def test_a_truth_that_is_no_truth_is_a_violation() -> None:
    link = proxies.Link(Peer({"id": 1, "value": 1}))
    with pytest.raises(proxies.Violation, match="no bool"):
        bool(proxies.RemoteObject(link, 0))
