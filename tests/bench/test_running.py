from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from atlas.bench import Journal, Record, best_of, greedy, loop, read_journal, standard_methods
from atlas.bench.figures import figures_of
from atlas.errors import EngineFailed, OperatorError, SandboxUnavailable
from atlas.ralph import Policy, Tools, solve_task
from atlas.sandbox import Sandbox
from atlas.types import Candidate, Event, Execution, Program, Request, RunClosed, RunLimits
from tests.bench.conftest import NARROW, RIGHT, SECRET, SEEN, WRONG, Scene, settings_of, suite

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_hidden_tests_are_run_after_the_run_is_closed_and_nothing_of_them_is_ever_asked(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    order: list[str] = []

    async def run(program: Program, limits: RunLimits) -> Execution:
        is_hidden = any(case.args in ("(10,)", "(50,)", f"({SECRET},)") for case in program.cases)
        order.append("hidden" if is_hidden else "visible")
        return await sandbox.run(program, limits)

    scene = Scene(run, [WRONG, RIGHT], tasks=suite(1))

    async def solve(request: Request, policy: Policy) -> AsyncIterator[Event]:
        assert str(SECRET) not in repr(request)
        async for event in scene.solve(request, policy):
            yield event
            order.append("closed") if isinstance(event, RunClosed) else None

    [record] = await scene.measure(tmp_path, [loop(2, 2)], solve=solve)
    assert record.passed
    assert "hidden" not in order[: order.index("closed")]
    assert order[order.index("closed") :] == ["closed", "hidden", "hidden"]
    asked = "".join(message.content for prompt in scene.engine.prompts for message in prompt.messages)
    assert str(SECRET) not in asked
    assert "f(10)" not in asked


async def test_verified_and_right_are_told_apart(sandbox: Sandbox, tmp_path: Path) -> None:
    """What passes what it was shown, and nothing else, is a false promise; so is what only stronger tests find out."""
    found: dict[str, Record] = {}
    for name, code in {"right": RIGHT, "narrow": NARROW, "seen": SEEN, "wrong": WRONG}.items():
        [found[name]] = await Scene(sandbox.run, [code], tasks=suite(1)).measure(tmp_path / name, [greedy()])
    told = {name: (record.status, record.passed, record.passed_stronger) for name, record in found.items()}
    assert told == {
        "right": ("verified", True, True),
        "narrow": ("verified", True, False),
        "seen": ("verified", False, False),
        "wrong": ("failed", False, False),
    }
    [row] = figures_of(settings_of(suite(4), [greedy()]), [replace(r, cell=replace(r.cell, task=n)) for n, r in found.items()])
    assert (row.num_verified, row.num_false, row.solved.value) == (3, 2, 0.5)
    assert row.false_verified.value == pytest.approx(2 / 3)


async def test_every_sample_of_best_of_k_is_graded_and_the_choice_sees_visible_tests_only(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """Five samples, of which two are the same program, which is tested once and counts twice."""
    scene = Scene(sandbox.run, [WRONG, SEEN, RIGHT, WRONG, RIGHT], tasks=suite(1))
    records = await scene.measure(tmp_path, [best_of(5)])
    [record] = records
    assert len(scene.engine.prompts) == 1
    assert Counter(sample.passed for sample in record.samples) == {True: 2, False: 3}
    assert {sample.state for sample in record.samples} >= {"duplicate", "passed", "failed"}
    assert record.status == "verified"
    assert not record.samples[0].passed
    [row] = figures_of(settings_of(scene.tasks, [best_of(5)]), records)
    oracle = {k: rate.value for k, rate in row.oracle.items()}
    assert oracle == {1: pytest.approx(0.4), 2: pytest.approx(0.7), 3: pytest.approx(0.9), 5: 1.0}


async def test_a_right_sample_that_was_not_chosen_solves_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    """Two samples pass what was shown; the choice falls on the one that knows nothing else, and no hidden test corrects it."""
    scene = Scene(sandbox.run, [SEEN, RIGHT], tasks=suite(1))

    async def seen_first(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        return sorted(candidates, key=lambda candidate: candidate.code != SEEN)

    def solve(request: Request, policy: Policy) -> AsyncIterator[Event]:
        return solve_task(request, Tools(generate=scene.engine.submit, run=sandbox.run, rank=seen_first))

    [record] = await scene.measure(tmp_path, [best_of(2)], solve=solve)
    assert (record.status, record.passed) == ("verified", False)
    [row] = figures_of(settings_of(scene.tasks, [best_of(2)]), [record])
    assert (row.solved.value, row.false_verified.value, row.oracle[2].value) == (0.0, 1.0, 1.0)


async def test_the_baseline_spends_what_best_of_k_has_spent_and_repairs_each_sample_once(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    scene = Scene(sandbox.run, [WRONG, "def f(x):\n    return 7\n", SEEN.replace("1: 2", "1: 3")], tasks=suite(2))
    methods = standard_methods(k=4, attempts=2)[1:3]
    records = await scene.measure(tmp_path, methods)
    spent = {(record.cell.task, record.cell.method): record for record in records}
    for number in range(2):
        best, baseline = spent[f"t{number}", "best-of-4"], spent[f"t{number}", "one-repair"]
        assert 0 < baseline.num_tokens <= best.num_tokens + 1
        assert baseline.num_tokens > best.num_tokens * 0.7
        assert baseline.num_attempts > 1
    lengths = [len(prompt.messages) for prompt in scene.engine.prompts if prompt.n == 1 and "number 0" in repr(prompt.messages)]
    assert lengths[:3] == [2, 4, 2]


async def test_seeds_draw_anew_and_greedy_is_run_once(sandbox: Sandbox, tmp_path: Path) -> None:
    scene = Scene(sandbox.run, [RIGHT, WRONG], tasks=suite(2))
    records = await scene.measure(tmp_path, [greedy(), best_of(1)], seeds=(1, 2, 3))
    assert Counter((record.cell.method, record.cell.seed) for record in records) == {
        ("greedy", 1): 2,
        ("best-of-1", 1): 2,
        ("best-of-1", 2): 2,
        ("best-of-1", 3): 2,
    }
    assert scene.told[-1] == (8, 8)
    by_seed = {record.cell.seed: record.passed for record in records if record.cell.method == "best-of-1"}
    assert by_seed == {1: False, 2: True, 3: False}


# -- whose failure it is --


async def test_a_judge_that_cannot_run_is_our_failure_and_no_candidates(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(_seconds: float) -> None:
        return

    monkeypatch.setattr("atlas.bench.judge.asyncio.sleep", at_once)
    tries = 0

    async def run(program: Program, limits: RunLimits) -> Execution:
        nonlocal tries
        if any(case.args == "(10,)" for case in program.cases):
            tries += 1
            raise SandboxUnavailable("no slot could be made")
        return await sandbox.run(program, limits)

    records = await Scene(run, [RIGHT], tasks=suite(1)).measure(tmp_path, [greedy()])
    assert tries == 4
    assert [record.failure and record.failure.message for record in records] == ["no slot could be made"]
    [row] = figures_of(settings_of(suite(1), [greedy()]), records)
    assert (row.num_failures, row.num_solvings, row.solved.value) == (1, 0, None)


async def test_a_model_that_fails_is_in_no_rate_and_is_tried_again_when_the_bench_goes_on(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    scene = Scene(sandbox.run, [RIGHT], tasks=suite(3))

    async def broken(request: Request, policy: Policy) -> AsyncIterator[Event]:
        if "number 1" in request.task:
            raise EngineFailed("the model is gone")
        async for event in scene.solve(request, policy):
            yield event

    records = await scene.measure(tmp_path, [greedy()], solve=broken)
    [row] = figures_of(settings_of(scene.tasks, [greedy()]), records)
    assert (row.num_failures, row.num_solvings, row.solved.value) == (1, 2, 1.0)
    asked = len(scene.engine.prompts)
    records = await scene.measure(tmp_path, [greedy()])
    assert len(scene.engine.prompts) == asked + 1
    assert all(record.passed and record.failure is None for record in records)
    assert len(records) == 3


async def test_a_bench_whose_every_task_fails_through_us_ends_with_the_reason(sandbox: Sandbox, tmp_path: Path) -> None:
    async def broken(request: Request, policy: Policy) -> AsyncIterator[Event]:
        if request.task:
            raise EngineFailed("the model is gone")
        yield RunClosed(run=None)  # type: ignore[arg-type]  # never reached: it makes this a generator

    scene = Scene(sandbox.run, [RIGHT], tasks=suite(30))
    with pytest.raises(OperatorError, match="6 failures of ours in a row, the last: the model is gone; mend it"):
        await scene.measure(tmp_path, [greedy()], solve=broken)
    assert len(read_journal(tmp_path)[1]) < 10


# -- going on --


async def test_a_bench_that_was_cut_off_goes_on_where_it_ended(sandbox: Sandbox, tmp_path: Path) -> None:
    scene = Scene(sandbox.run, [RIGHT], tasks=suite(4))
    whole = await scene.measure(tmp_path, [greedy()])
    path = tmp_path / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # two records, and half of a third
    asked = len(scene.engine.prompts)
    again = await scene.measure(tmp_path, [greedy()])
    assert len(scene.engine.prompts) == asked + 2
    assert {record.cell for record in again} == {record.cell for record in whole}
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
    assert await scene.measure(tmp_path, [greedy()]) == again
    assert len(scene.engine.prompts) == asked + 2


async def test_other_settings_are_refused_by_name_and_change_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    scene = Scene(sandbox.run, [RIGHT], tasks=suite(1))
    await scene.measure(tmp_path, [greedy()])
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(OperatorError, match=r"seeds was \[1\], is \[1,2\]\); go on with the same, or give another --name"):
        Journal(tmp_path, settings_of(scene.tasks, [greedy()], (1, 2)))
    assert (tmp_path / "records.jsonl").read_bytes() == before


async def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path, settings_of(suite(), [greedy()]))
    with pytest.raises(OperatorError, match="is being written by another process"):
        Journal(tmp_path, settings_of(suite(), [greedy()]))
    journal.close()
    Journal(tmp_path, settings_of(suite(), [greedy()])).close()


async def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("{}\n")
    with pytest.raises(OperatorError, match="is not the record of a bench"):
        Journal(tmp_path, settings_of(suite(), [greedy()]))
    with pytest.raises(OperatorError, match="No such file or directory"):
        read_journal(tmp_path / "nowhere")


async def test_cancelling_a_bench_ends_what_runs_and_keeps_what_is_done(sandbox: Sandbox, tmp_path: Path) -> None:
    scene = Scene(sandbox.run, [RIGHT], tasks=suite(3))
    under_way, ended = asyncio.Event(), asyncio.Event()

    async def slow(request: Request, policy: Policy) -> AsyncIterator[Event]:
        if "number 2" in request.task:
            under_way.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
        async for event in scene.solve(request, policy):
            yield event

    measuring = asyncio.create_task(scene.measure(tmp_path, [greedy()], solve=slow))
    async with asyncio.timeout(60):
        await under_way.wait()
        while len(scene.told) < 2:  # noqa: ASYNC110 - the bench tells by a plain call
            await asyncio.sleep(0.01)
    measuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await measuring
    assert ended.is_set()
    assert len(read_journal(tmp_path)[1]) == 2
