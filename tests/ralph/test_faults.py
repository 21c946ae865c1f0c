"""A failure of ours is never a candidate's, and a candidate's is never ours: faults are injected in every layer."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from atlas.engine import Group
from atlas.errors import (
    AtlasError,
    BadRequest,
    EngineFailed,
    EngineOverloaded,
    EngineUnavailable,
    LedgerUnavailable,
    SandboxOverloaded,
    SandboxRefused,
    SandboxUnavailable,
    UpstreamFailed,
)
from atlas.ralph.patience import MAX_TRIES
from atlas.ralph.policy import always_repair
from atlas.sandbox import Sandbox
from atlas.types import (
    Delta,
    Generation,
    Prompt,
    Request,
    Route,
    Run,
    RunLimits,
    VisibleTests,
    WorkRetried,
)
from tests.ralph.conftest import Scene, fenced, function, route

pytestmark = pytest.mark.asyncio(loop_scope="module")

MARK = "ours-4711"  # stands in every message of ours, and must stand nowhere else
RIGHT = function("return x + 1")
WRONG = function("return x - 1")
CRASH = function("return y + 1")
TASK = Request(task="Write f(x), which adds one.", tests=VisibleTests(code="assert f(1) == 2\nassert f(5) == 6\n"), route=route())


class Faults:
    """Raises what it is told to, on the calls it is told to; remembers what was slept."""

    def __init__(self, *errors: Exception | None, forever: bool = False) -> None:
        self._errors, self._is_forever, self.num_calls = list(errors), forever, 0
        self.slept: list[float] = []

    def strike(self) -> None:
        error = self._errors[min(self.num_calls, len(self._errors) - 1)] if self._is_forever else self._next()
        self.num_calls += 1
        if error is not None:
            raise error

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def _next(self) -> Exception | None:
        return self._errors[self.num_calls] if self.num_calls < len(self._errors) else None


def struck(scene: Scene, faults: Faults, *places: str) -> Scene:
    """The scene with faults in these of its tools."""
    for where in places:
        _strike(scene, faults, where)
    return scene


def _strike(scene: Scene, faults: Faults, where: str) -> None:
    original: Callable[..., Awaitable[Any]] = getattr(scene.tools, where)

    async def call(*arguments: Any) -> Any:
        faults.strike()
        return await original(*arguments)

    changed: dict[str, Any] = {where: call}
    scene.tools = dataclasses.replace(scene.tools, **changed)


def scene_with(sandbox: Sandbox, replies: Sequence[str], faults: Faults, where: str) -> Scene:
    return struck(Scene(sandbox.run, replies, sleep=faults.sleep), faults, where)


def check_purity(run: Run, scene: Scene) -> None:
    """Nothing of ours is in a prompt or in what is recorded of a candidate."""
    assert not any(MARK in text for text in scene.asked)
    for attempt in run.attempts:
        for candidate in attempt.candidates:
            assert MARK not in repr(candidate)
            if candidate.state in ("failed", "passed", "unconfirmed"):
                assert candidate.execution is not None


PASSING = [EngineOverloaded(MARK), EngineUnavailable(MARK), EngineFailed(MARK), UpstreamFailed(MARK), SandboxUnavailable(MARK)]


@pytest.mark.parametrize("where", ["generate", "run", "context", "rank", "route"])
@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
async def test_a_passing_failure_is_waited_for(sandbox: Sandbox, where: str, error: AtlasError) -> None:
    faults = Faults(error, error)
    scene = scene_with(sandbox, [RIGHT], faults, where)
    request = replace(TASK, route=None) if where == "route" else TASK
    run = await scene.solve(request)
    assert (run.verdict.status, len(run.attempts)) == ("verified", 1)
    assert faults.slept == [0.25, 1.0]
    told = [event.failure.message for event in scene.events if isinstance(event, WorkRetried)]
    assert told == [MARK, MARK]
    check_purity(run, scene)


@pytest.mark.parametrize("where", ["generate", "run", "context", "rank", "route"])
async def test_a_lasting_failure_ends_the_run_as_ours(sandbox: Sandbox, where: str) -> None:
    faults = Faults(LedgerUnavailable(MARK), forever=True)
    scene = scene_with(sandbox, [RIGHT], faults, where)
    run = await scene.solve(replace(TASK, route=None))
    assert run.failure is not None
    assert (run.failure.code, run.failure.message, run.ended_by) == ("ledger_unavailable", MARK, "failure")
    assert run.verdict.status == ("verified" if where == "rank" else "unchecked")  # it had passed before it was ranked
    assert len(faults.slept) == MAX_TRIES - 1
    assert not any(candidate.state == "failed" for attempt in run.attempts for candidate in attempt.candidates)
    check_purity(run, scene)


@pytest.mark.parametrize("where", ["generate", "run", "context", "rank", "route"])
@pytest.mark.parametrize("error", [RuntimeError(MARK), TimeoutError(MARK), ConnectionResetError(MARK)], ids=repr)
async def test_a_defect_ends_the_run_as_ours_and_keeps_its_text_to_the_log(
    sandbox: Sandbox, where: str, error: Exception
) -> None:
    scene = scene_with(sandbox, [RIGHT], Faults(error), where)
    run = await scene.solve(replace(TASK, route=None, deadline_s=60))
    assert run.failure is not None
    assert (run.failure.code, run.ended_by) == ("internal_error", "failure")
    assert MARK not in run.failure.message
    check_purity(run, scene)


async def test_a_refusal_to_run_code_is_not_tried_again(sandbox: Sandbox) -> None:
    faults = Faults(SandboxRefused(MARK), forever=True)
    scene = scene_with(sandbox, [RIGHT], faults, "run")
    run = await scene.solve(TASK)
    assert run.failure is not None
    assert (run.failure.code, faults.num_calls, faults.slept) == ("sandbox_refused", 1, [])
    assert [candidate.state for candidate in run.attempts[0].candidates] == ["untested"]


async def test_a_wrong_request_is_not_tried_again(sandbox: Sandbox) -> None:
    faults = Faults(BadRequest(MARK), forever=True)
    run = await scene_with(sandbox, [RIGHT], faults, "run").solve(TASK)
    assert run.failure is not None
    assert (run.failure.code, faults.num_calls) == ("invalid_request", 1)


async def test_a_server_that_says_when_is_believed(sandbox: Sandbox) -> None:
    faults = Faults(SandboxOverloaded(MARK, retry_after_s=3), SandboxOverloaded(MARK, retry_after_s=3600))
    await scene_with(sandbox, [RIGHT], faults, "run").solve(TASK)
    assert faults.slept == [3, 10]


async def test_ours_after_a_candidates_failure_leaves_that_as_it_was(sandbox: Sandbox) -> None:
    faults = Faults(None, SandboxUnavailable(MARK), forever=True)
    scene = scene_with(sandbox, [CRASH, RIGHT], faults, "run")
    run = await scene.solve(TASK)
    assert run.failure is not None
    assert run.verdict.status == "unchecked"
    first, second = run.attempts
    assert (first.candidates[0].state, second.candidates[0].state) == ("failed", "untested")
    assert "NameError" in scene.asked[1]
    check_purity(run, scene)


async def test_ours_during_confirmation_is_no_failed_confirmation(sandbox: Sandbox) -> None:
    faults = Faults(None, SandboxUnavailable(MARK))
    run = await scene_with(sandbox, [RIGHT], faults, "run").solve(TASK)
    assert (run.verdict.status, run.verdict.is_confirmed) == ("verified", True)


async def test_ours_while_the_model_writes_tests_is_waited_for(sandbox: Sandbox) -> None:
    faults = Faults(None, EngineOverloaded(MARK))
    scene = scene_with(sandbox, [RIGHT, "assert f(1) == 2\n"], faults, "generate")
    run = await scene.solve(Request(task="Write f(x).", route=route(num_test_writers=1)))
    assert run.verdict.status == "self_tested"
    check_purity(run, scene)


class Torn:
    """A group whose engine breaks after so many candidates."""

    def __init__(self, group: Group, num_candidates: int) -> None:
        self._group, self._left = group, num_candidates

    async def finished(self) -> AsyncIterator[Generation]:
        async for generation in self._group.finished():
            if self._left == 0:
                raise EngineFailed(MARK)
            self._left -= 1
            yield generation

    async def __aiter__(self) -> AsyncIterator[Delta]:
        async for delta in self._group:
            yield delta
        raise EngineFailed(MARK)

    def cancel(self, indices: Sequence[int] | None = None) -> None:
        self._group.cancel(indices)


async def test_an_engine_that_breaks_costs_only_the_candidates_it_had_not_finished(sandbox: Sandbox) -> None:
    replies = [function(f"return {number}") for number in (10, 11, 12, 13)]
    scene = Scene(sandbox.run, replies, sleep=Faults().sleep)

    async def torn(prompt: Prompt) -> Torn | Group:
        group = await scene.engine.submit(prompt)
        return Torn(group, 2) if len(scene.engine.prompts) == 1 else group

    scene.tools = dataclasses.replace(scene.tools, generate=torn)
    run = await scene.solve(replace(TASK, seed=0, route=route(k=4, max_attempts=1)))
    assert [prompt.n for prompt in scene.engine.prompts] == [4, 2]
    seeds = [[sampling.seed for sampling in prompt.sampling] for prompt in scene.engine.prompts]
    assert seeds[1] == seeds[0][2:]
    assert [candidate.ref.index for candidate in run.attempts[0].candidates] == [0, 1, 2, 3]
    assert (run.failure, run.attempts[0].num_retries) == (None, 1)
    assert len([program for program in scene.programs if "10" in program.code]) == 1
    check_purity(run, scene)


HOSTILE = {
    "ends the process": "import os\nos._exit(0)\n",
    "kills itself": "import os\nos.kill(os.getpid(), 9)\n",
    "exits": "raise SystemExit(0)\n",
    "exits in the call": "def f(x):\n    raise SystemExit(0)\n",
    "runs for ever": "while True:\n    pass\n",
    "runs for ever in the call": "def f(x):\n    while True:\n        pass\n",
    "takes all memory": "def f(x):\n    return len(bytearray(10**10))\n",
    "recurses": "def f(x):\n    return f(x)\n",
    "floods": "def f(x):\n    while True:\n        print('x' * 10000)\n",
    "writes everywhere": "import os\nfor fd in range(3, 60):\n    try: os.write(fd, b'{}')\n    except OSError: pass\n",
    "is equal to everything": "class E:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return E()\n",
    "does not parse": "def f(x:\n",
    "holds a null byte": "def f(x):\n    return '\0'\n",
    "defines something else": "def g(x):\n    return x\n",
    "imports nothing there": "import nothing_there\n",
    "forks": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
    "is very long": "def f(x):\n    return 1\n" + "# é\n" * 40_000,
    "is deeply nested": "def f(x):\n    return " + "(" * 3000 + ")" * 3000 + "\n",
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE.keys())
async def test_whatever_a_candidate_does_is_its_own_failure(sandbox: Sandbox, code: str) -> None:
    scene = Scene(sandbox.run, [fenced(code)])
    scene.engine.capabilities = replace(scene.engine.capabilities, context_tokens=1_000_000)
    limits = RunLimits(wall_s=1.0, cpu_s=1.0, memory_bytes=200_000_000)
    run = await scene.solve(replace(TASK, limits=limits, route=route(max_attempts=1)))
    assert run.failure is None
    assert (run.verdict.status, run.attempts[0].num_retries) == ("failed", 0)


class Storm(Faults):
    """Strikes three times in ten."""

    KINDS: tuple[Exception, ...] = (*PASSING, SandboxRefused(MARK), RuntimeError(MARK))

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)

    def strike(self) -> None:
        if self._rng.random() < 0.3:
            raise self._rng.choices(self.KINDS, [10] * len(PASSING) + [1, 1])[0]


@pytest.mark.parametrize("seed", range(12))
async def test_in_a_storm_of_faults_nobody_is_blamed_for_another(sandbox: Sandbox, seed: int) -> None:
    """Whatever comes of it, no candidate is judged wrongly and no prompt knows of it."""
    storm = Storm(seed)
    replies = [WRONG, CRASH, function("return x"), RIGHT]
    scene = Scene(sandbox.run, replies, sleep=storm.sleep, policy=always_repair)
    struck(scene, storm, "generate", "run", "context", "rank")
    run = await scene.solve(replace(TASK, route=Route(k=2, max_attempts=4, is_first_greedy=False)))
    check_purity(run, scene)
    for candidate in (candidate for attempt in run.attempts for candidate in attempt.candidates):
        impossible = ("failed", "unconfirmed") if "return x + 1" in candidate.code else ("passed",)
        assert candidate.state not in impossible
    assert run.failure is not None or run.verdict.status == "verified"
    assert run.verdict.status != "verified" or "return x + 1" in run.code
