"""The whole loop: a scripted model, a real sandbox."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import msgspec
import pytest
from msgspec.structs import replace

from atlas.engine import Group
from atlas.errors import ContextLengthExceeded
from atlas.ralph import solve_task
from atlas.ralph.policy import always_fresh, always_repair
from atlas.sandbox import Sandbox
from atlas.types import (
    AttemptStarted,
    CandidateEnded,
    Case,
    Event,
    Execution,
    Message,
    Program,
    Prompt,
    Request,
    RunLimits,
    RunStarted,
    SelfTestsWritten,
    Snippet,
    VisibleTests,
)
from tests.ralph.conftest import Scene, fenced, function, route

pytestmark = pytest.mark.asyncio(loop_scope="module")

RIGHT = function("return x + 1")
WRONG = function("return x - 1")
CRASH = function("return y + 1")
TESTS = VisibleTests(code="assert f(1) == 2\nassert f(5) == 6\n")
TASK = Request(task="Write f(x), which adds one.", tests=TESTS, route=route())


async def test_an_answer_that_passes_is_verified(sandbox: Sandbox) -> None:
    run = await Scene(sandbox.run, [RIGHT]).solve(TASK)
    verdict = run.verdict
    assert (verdict.status, verdict.source, verdict.tests_run, verdict.tests_passed) == ("verified", "given", 2, 2)
    assert verdict.sealed
    assert verdict.is_confirmed
    assert verdict.tier
    assert (run.code, run.ended_by, run.failure) == ("def f(x):\n    return x + 1\n", "passed", None)


async def test_a_winner_is_run_once_more_in_a_fresh_interpreter(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [RIGHT])
    await scene.solve(TASK)
    assert [program.fresh for program in scene.programs] == [False, True]


async def test_who_passes_only_once_is_no_winner(sandbox: Sandbox) -> None:
    async def fickle(program: Program, limits: RunLimits) -> Execution:
        code = program.code.replace("+ 1", "+ 2") if program.fresh and "# firm" not in program.code else program.code
        return await sandbox.run(replace(program, code=code), limits)

    run = await Scene(fickle, [RIGHT, function("return x + 1  # firm\n    pass")]).solve(TASK)
    first, second = run.attempts
    assert (first.candidates[0].state, second.candidates[0].state) == ("unconfirmed", "passed")
    assert run.winner == second.candidates[0].ref


async def test_a_repair_shows_the_real_traceback(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [CRASH, RIGHT])
    run = await scene.solve(TASK)
    assert run.verdict.status == "verified"
    assert [attempt.action for attempt in run.attempts] == ["fresh", "repair"]
    assert "NameError: name 'y' is not defined" in scene.asked[1]
    assert 'File "solution.py", line 2, in f' in scene.asked[1]
    assert "return y + 1" in scene.asked[1]


async def test_a_repair_shows_what_was_expected_and_what_came(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [WRONG, RIGHT], policy=always_repair)
    await scene.solve(TASK)
    assert "assert f(1) == 2\n- expected 2\n+ returned 0" in scene.asked[1]


async def test_a_fresh_attempt_shows_no_failure(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [WRONG, function("return x"), RIGHT], policy=always_fresh)
    run = await scene.solve(TASK)
    assert run.verdict.status == "verified"
    assert len(set(scene.asked)) == 1


async def test_the_temperature_rises_from_attempt_to_attempt(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [WRONG, CRASH, function("return 0")])
    request = replace(TASK, route=route(temperature=0.5, temperature_rise=0.25, max_temperature=0.9))
    run = await scene.solve(request)
    assert [prompt.sampling[0].temperature for prompt in scene.engine.prompts] == [0.5, 0.75, 0.9]
    assert (run.verdict.status, run.ended_by) == ("failed", "max_attempts")


async def test_the_first_pass_ends_those_who_still_decode(sandbox: Sandbox) -> None:
    slow = fenced("def f(x):\n    return x - 1\n" + "# and so on\n" * 40)
    scene = Scene(sandbox.run, [RIGHT, slow], delay_s=0.05)
    run = await scene.solve(replace(TASK, route=route(k=2)))
    assert [candidate.state for candidate in run.attempts[0].candidates] == ["passed", "cancelled"]
    assert run.attempts[0].candidates[1].num_tokens < 100


async def test_a_candidate_is_tested_while_others_decode(sandbox: Sandbox) -> None:
    scene = Scene(
        sandbox.run, [WRONG, fenced("def f(x):\n" + "    # thinking about it\n" * 20 + "    return x + 1\n")], delay_s=0.02
    )
    run = await scene.solve(replace(TASK, route=route(k=2)))
    first, second = run.attempts[0].candidates
    assert first.tested_s is not None
    assert first.tested_s < second.ended_s


async def test_equal_syntax_trees_are_tested_once(sandbox: Sandbox) -> None:
    twins = [WRONG, fenced('def f(x):\n    """Less."""\n    return x-1  # less\n'), fenced("def f(x): return (x - 1)\n")]
    scene = Scene(sandbox.run, twins)
    run = await scene.solve(replace(TASK, route=route(k=3, max_attempts=2)))
    states = [candidate.state for attempt in run.attempts for candidate in attempt.candidates]
    assert states == ["failed", "duplicate", "duplicate", "duplicate", "duplicate", "duplicate"]
    assert run.attempts[1].candidates[0].duplicate_of == run.attempts[0].candidates[0].ref
    assert len(scene.programs) == 1


async def test_a_candidate_that_repeats_itself_is_stopped(sandbox: Sandbox) -> None:
    loop = "Let me think.\n" + "I should check this again and again.\n" * 400
    scene = Scene(sandbox.run, [loop, RIGHT])
    run = await scene.solve(TASK)
    stopped = run.attempts[0].candidates[0]
    assert (stopped.state, run.verdict.status) == ("repeating", "verified")
    assert stopped.num_tokens < 600


async def test_code_before_the_repetition_still_counts(sandbox: Sandbox) -> None:
    run = await Scene(sandbox.run, [RIGHT + "That is all there is to say about it.\n" * 400]).solve(TASK)
    assert run.verdict.status == "verified"


async def test_held_back_tests_are_run_and_never_shown(sandbox: Sandbox) -> None:
    results = [100 + number for number in range(9)]
    asserts = "".join(f"assert f({number}) == {result}\n" for number, result in enumerate(results))
    scene = Scene(sandbox.run, [function(f"return {number}") for number in range(5)], policy=always_repair)
    request = replace(TASK, tests=VisibleTests(code=asserts), route=route(max_attempts=5))
    run = await scene.solve(request)
    assert run.verdict.num_held_back == 3
    assert scene.programs[0].cases == run.checks[0].cases
    assert len(run.checks[0].cases) == 9
    said = " ".join(scene.asked)
    shown = [result for result in results if str(result) in said]
    assert len(shown) == 6


async def test_nothing_is_shown_of_who_fails_only_held_back_tests(sandbox: Sandbox) -> None:
    asserts = "".join(f"assert f({number}) == {number + 1}\n" for number in range(6))
    first = Scene(sandbox.run, [WRONG])
    await first.solve(replace(TASK, tests=VisibleTests(code=asserts), route=route(max_attempts=1)))
    hidden = next(number for number in range(6) if f"assert f({number}) ==" not in first.asked[0])
    scene = Scene(sandbox.run, [function(f"return -7 if x == {hidden} else x + 1")], policy=always_repair)
    run = await scene.solve(replace(TASK, tests=VisibleTests(code=asserts), route=route(max_attempts=2)))
    assert run.verdict.status == "failed"
    assert run.attempts[0].candidates[0].failure is None
    assert not any("-7" in text for text in scene.asked)


async def test_pytest_files_judge_and_their_assertion_is_shown(sandbox: Sandbox) -> None:
    tests = "from solution import f\n\ndef test_one():\n    assert f(1) == 2\n"
    scene = Scene(sandbox.run, [WRONG, RIGHT], policy=always_repair)
    run = await scene.solve(replace(TASK, tests=VisibleTests(code=tests)))
    assert run.verdict.status == "verified"
    assert "assert 0 == 2" in scene.asked[1]
    assert "def test_one" in scene.asked[0]


async def test_a_checker_judges(sandbox: Sandbox) -> None:
    tests = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3\n"
    run = await Scene(sandbox.run, [WRONG, RIGHT]).solve(replace(TASK, entry_point="f", tests=VisibleTests(code=tests)))
    assert (run.verdict.status, len(run.attempts)) == ("verified", 2)


async def test_a_program_is_judged_by_its_output(sandbox: Sandbox) -> None:
    tests = VisibleTests(cases=(Case(stdin="3\n", expected="9\n"), Case(stdin="4\n", expected="16\n")))
    scene = Scene(sandbox.run, [fenced("print(int(input()) * 3)\n"), fenced("print(int(input()) ** 2)\n")], policy=always_repair)
    run = await scene.solve(Request(task="Square the number.", tests=tests, route=route()))
    assert run.verdict.status == "verified"
    assert "Input:\n3\n\nOutput:\n9" in scene.asked[0]
    assert "Expected output:\n16\n\nActual output:\n12" in scene.asked[1]


async def test_examples_in_the_task_are_tests(sandbox: Sandbox) -> None:
    task = "Write f(x).\n\n>>> f(1)\n2\n>>> f(5)\n6\n"
    scene = Scene(sandbox.run, [WRONG, RIGHT])
    run = await scene.solve(Request(task=task, route=route()))
    assert (run.verdict.status, run.verdict.source, len(run.attempts)) == ("verified", "given", 2)
    assert scene.asked[0].count("f(5)") == 1


async def test_without_tests_candidates_and_tests_vote(sandbox: Sandbox) -> None:
    written = "```python\nassert f(1) == 2\nassert f(2) == 3\nassert f(9) == 10\n```"
    astray = "```python\nassert f(1) == 2\nassert f(2) == 77\n```"
    scene = Scene(sandbox.run, [WRONG, RIGHT, fenced("def f(x):\n    return 1 + x\n"), written, astray])
    run = await scene.solve(Request(task="Write f(x), which adds one.", route=route(k=3, num_test_writers=2)))
    assert (run.verdict.status, run.verdict.source, run.ended_by) == ("self_tested", "generated", "agreed")
    assert (run.verdict.tests_run, run.verdict.tests_passed, run.verdict.num_agreeing) == (4, 3, 2)
    assert "+" in run.code
    assert [event.num_tests for event in scene.events if isinstance(event, SelfTestsWritten)] == [4]


async def test_a_duplicate_votes_but_is_run_once(sandbox: Sandbox) -> None:
    written = "assert f(1) == 2\nassert f(2) == 3\n"
    scene = Scene(sandbox.run, [WRONG, RIGHT, RIGHT, written])
    run = await scene.solve(Request(task="Write f(x).", route=route(k=3, num_test_writers=1)))
    assert run.verdict.num_agreeing == 2
    assert len([program for program in scene.programs if not program.fresh]) == 2


async def test_a_self_made_expectation_is_never_shown_as_a_fact(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [WRONG, "assert f(1) == 777\nassert f(2) == 888\n"], policy=always_repair)
    run = await scene.solve(Request(task="Write f(x).", route=route(num_test_writers=1, max_attempts=2)))
    assert (run.verdict.status, run.verdict.source, run.verdict.tests_passed) == ("unchecked", "generated", 0)
    assert not any("777" in text or "888" in text for text in scene.asked)


async def test_code_that_breaks_on_every_self_made_test_has_failed(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [CRASH, "assert f(1) == 2\nassert f(2) == 3\n"])
    run = await scene.solve(Request(task="Write f(x).", route=route(num_test_writers=1, max_attempts=1)))
    assert (run.verdict.status, run.verdict.source) == ("failed", "generated")


async def test_the_name_is_taken_from_the_candidates_if_the_task_has_none(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [function("return x + 1", "inc"), "assert inc(1) == 2\n"])
    run = await scene.solve(Request(task="Write Python that adds one to a number.", route=route(num_test_writers=1)))
    assert (run.verdict.status, run.entry_point) == ("self_tested", "inc")


async def test_what_cannot_be_tested_is_run_and_says_unchecked(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [fenced("print(1 / 0)\n"), fenced("print('hello')\n")])
    run = await scene.solve(Request(task="Print hello.", route=route(num_test_writers=1)))
    assert (run.verdict.status, run.verdict.tests_run) == ("unchecked", 0)
    assert run.code == "print('hello')\n"
    assert "ZeroDivisionError" in scene.asked[1]


async def test_the_best_of_what_failed_is_the_answer(sandbox: Sandbox) -> None:
    half = function("return 2")
    run = await Scene(sandbox.run, [WRONG, half, WRONG]).solve(replace(TASK, route=route(k=3, max_attempts=1)))
    assert (run.verdict.status, run.verdict.tests_passed, run.code) == ("failed", 1, "def f(x):\n    return 2\n")


async def test_exhaustive_tests_every_candidate_of_every_attempt(sandbox: Sandbox) -> None:
    replies = [RIGHT, WRONG, function("return 1 + x"), function("return x + 2")]
    scene = Scene(sandbox.run, replies, policy=always_fresh)
    run = await scene.solve(replace(TASK, until="exhaustive", route=route(k=2, max_attempts=2)))
    assert [candidate.state for attempt in run.attempts for candidate in attempt.candidates] == ["passed", "failed"] * 2
    assert (run.verdict.status, run.ended_by) == ("verified", "max_attempts")


async def test_the_deadline_ends_a_run_with_what_there_is(sandbox: Sandbox) -> None:
    thoughts = "".join(f"# thought {number}\n" for number in range(1000))  # without end, and never the same again
    scene = Scene(sandbox.run, [WRONG, WRONG + thoughts], delay_s=0.02)
    started_s = time.monotonic()
    run = await scene.solve(replace(TASK, deadline_s=3.0))
    assert time.monotonic() - started_s < 30
    assert (run.ended_by, run.verdict.status, run.failure) == ("deadline", "failed", None)
    assert len(run.attempts) == 2
    assert scene.engine.stats().num_running == 0


async def test_a_deadline_before_any_test_leaves_the_answer_unchecked(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [RIGHT * 50], delay_s=0.05)
    run = await scene.solve(replace(TASK, deadline_s=0.3))
    assert (run.ended_by, run.verdict.status) == ("deadline", "unchecked")


async def test_no_more_tokens_are_generated_than_the_budget_has(sandbox: Sandbox) -> None:
    run = await Scene(sandbox.run, [WRONG]).solve(replace(TASK, max_tokens=25, route=route(k=2, max_attempts=9)))
    assert run.ended_by == "tokens"
    assert run.num_tokens <= 26


async def test_no_test_starts_when_the_sandbox_budget_is_spent(sandbox: Sandbox) -> None:
    replies = [function(f"return {number}") for number in range(9)]
    scene = Scene(sandbox.run, replies)
    run = await scene.solve(replace(TASK, max_sandbox_s=0.000_001, route=route(max_attempts=9)))
    assert (run.ended_by, len(scene.programs)) == ("sandbox_s", 1)


async def test_closing_the_stream_ends_everything(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [RIGHT * 100], delay_s=0.05)
    stream = solve_task(TASK, scene.tools)
    async for event in stream:
        if isinstance(event, AttemptStarted):
            break
    await stream.aclose()
    await asyncio.sleep(0.05)
    assert scene.engine.stats().num_running == 0


async def test_context_history_and_hint_are_in_the_prompt(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [RIGHT])
    request = replace(
        TASK,
        context=(Snippet(path="one.py", text="ONE = 1"),),
        hint="use ONE",
        history=(Message(role="user", content="Hello."), Message(role="assistant", content="Hi!")),
    )
    await scene.solve(request)
    roles = [message.role for message in scene.engine.prompts[0].messages]
    assert roles == ["system", "user", "assistant", "user"]
    assert all(part in scene.asked[0] for part in ("ONE = 1", "Hint: use ONE", "Hello.", "assert f(5) == 6"))


async def test_a_prompt_that_is_too_long_is_shortened(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [CRASH, RIGHT])

    async def short(prompt: Prompt) -> Group:
        if len(prompt.messages[-1].content) > 300 or len(prompt.messages) > 2:
            raise ContextLengthExceeded("too long")
        return await scene.engine.submit(prompt)

    scene.tools = dataclasses.replace(scene.tools, generate=short)
    run = await scene.solve(replace(TASK, context=(Snippet(path="long.py", text="X = 1\n" * 200),)))
    assert run.verdict.status == "verified"
    assert "X = 1" not in scene.asked[0]


async def test_a_task_that_is_too_long_is_the_users_error(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [RIGHT])
    run = await scene.solve(replace(TASK, task="word " * 50_000))
    assert run.failure is not None
    assert (run.failure.code, run.verdict.status, run.attempts[0].candidates) == ("context_length_exceeded", "unchecked", ())


async def test_tests_without_a_test_are_the_users_error(sandbox: Sandbox) -> None:
    run = await Scene(sandbox.run, [RIGHT]).solve(replace(TASK, tests=VisibleTests(code="x = 1\n")))
    assert run.failure is not None
    assert run.failure.code == "invalid_request"
    assert run.attempts == ()


async def test_equal_seeds_draw_equal_candidates(sandbox: Sandbox) -> None:
    request = replace(TASK, seed=7, route=route(k=2, max_attempts=2))
    seeds = []
    for _ in range(2):
        scene = Scene(sandbox.run, [WRONG])
        await scene.solve(request)
        seeds.append([sampling.seed for prompt in scene.engine.prompts for sampling in prompt.sampling])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 4


async def test_events_tell_the_story_and_travel_as_json(sandbox: Sandbox) -> None:
    scene = Scene(sandbox.run, [CRASH, RIGHT])
    await scene.solve(TASK)
    kinds = [type(event).__name__ for event in scene.events]
    one_attempt = ["AttemptStarted", "CandidateEnded", "CandidateTested", "AttemptEnded"]
    assert kinds == ["RunStarted", *one_attempt, *one_attempt, "RunClosed"]
    assert msgspec.json.decode(msgspec.json.encode(scene.events), type=list[Event]) == scene.events
    assert isinstance(scene.events[0], RunStarted)
    assert scene.events[0].num_tests == 2
    times = [event.at_s for event in scene.events]
    assert times == sorted(times)
    assert isinstance(scene.events[2], CandidateEnded)
