"""The pool and its clients, and what breaks in them: a failure of ours is never told as the candidate's."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import stat
from itertools import count
from pathlib import Path

import pytest

from atlas.errors import BadRequest, SandboxOverloaded, SandboxUnavailable
from atlas.sandbox import Sandbox
from atlas.settings import SandboxSettings
from atlas.types import Case, Program, RunLimits
from tests.sandbox.processes import boxes, descriptors, until, zygotes

HELLO = Program(code="print('hello')")
SPIN = Program(code="while True: pass")
SLOW = Program(code="import time\ntime.sleep(0.7)\nprint('slept')")
DOUBLE = Program(
    code="def double(x):\n    return 2 * x\n", mode="function", entry_point="double", cases=(Case(args="(2,)", expected="4"),)
)


def pool_pid(sandbox: Sandbox) -> int:
    assert sandbox.pid is not None
    return sandbox.pid


async def test_a_program_runs_and_its_output_comes_back(sandbox: Sandbox) -> None:
    execution = await sandbox.run(HELLO)
    assert (execution.outcome, execution.exit_code, execution.stdout) == ("completed", 0, "hello\n")
    assert execution.tier == "native"
    assert not execution.passed  # nothing was tested


async def test_cancelling_the_call_ends_the_run(sandbox: Sandbox) -> None:
    runs = [asyncio.create_task(sandbox.run(SPIN)) for _ in range(2)]
    await until(lambda: len(boxes(pool_pid(sandbox))) >= 2, "two boxes")
    for run in runs:
        run.cancel()
    await asyncio.gather(*runs, return_exceptions=True)
    await until(lambda: not boxes(pool_pid(sandbox)), "no boxes left")
    assert (await sandbox.status()).running == 0


async def test_runs_beyond_the_slots_wait_their_turn(sandbox: Sandbox) -> None:
    await sandbox.run(HELLO)  # the tier is chosen
    executions = await asyncio.gather(*(sandbox.run(SLOW) for _ in range(4)))
    assert all(execution.outcome == "completed" for execution in executions)
    waited_half_a_run = sorted(execution.queue_s > 0.35 for execution in executions)
    assert waited_half_a_run == [False, False, True, True]


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    sandbox = Sandbox(SandboxSettings(slots=1, max_waiting=1))
    await sandbox.start()
    try:
        await sandbox.run(HELLO)
        runs = [asyncio.create_task(sandbox.run(SLOW)) for _ in range(2)]
        await until(lambda: boxes(pool_pid(sandbox)), "a box")
        with pytest.raises(SandboxOverloaded, match="max_waiting") as caught:
            await sandbox.run(HELLO)
        assert caught.value.retry_after_s == 1.0
        await asyncio.gather(*runs)
        assert (await sandbox.status()).refusals == {"sandbox_overloaded": 1}
    finally:
        await sandbox.close()


async def test_a_program_that_makes_no_sense_is_refused_by_name(sandbox: Sandbox) -> None:
    with pytest.raises(BadRequest, match="cobol"):
        await sandbox.run(Program(code="x", language="cobol"))


async def test_a_zygote_that_dies_is_replaced_and_the_run_repeated(sandbox: Sandbox) -> None:
    await sandbox.run(HELLO)
    run = asyncio.create_task(sandbox.run(SLOW))
    await until(lambda: boxes(pool_pid(sandbox)), "a box")
    for pid in zygotes(pool_pid(sandbox)):
        os.kill(pid, signal.SIGKILL)
    execution = await run
    assert (execution.outcome, execution.stdout) == ("completed", "slept\n")
    assert (await sandbox.run(DOUBLE)).passed
    assert (await sandbox.status()).zygote_restarts >= 1


async def test_zygotes_that_keep_dying_are_our_failure_not_the_candidate_s(sandbox: Sandbox) -> None:
    await sandbox.run(HELLO)
    run = asyncio.create_task(sandbox.run(SPIN))
    for _ in range(2):
        await until(lambda: boxes(pool_pid(sandbox)), "a box")
        for pid in zygotes(pool_pid(sandbox)):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not boxes(pool_pid(sandbox)) or run.done(), "the box is gone")
    with pytest.raises(SandboxUnavailable, match="died"):
        await run
    assert (await sandbox.run(DOUBLE)).passed


async def test_a_pool_that_dies_fails_its_runs_as_ours_and_comes_back(sandbox: Sandbox) -> None:
    await sandbox.run(HELLO)
    first = pool_pid(sandbox)
    run = asyncio.create_task(sandbox.run(SPIN))
    await until(lambda: boxes(first), "a box")
    left = boxes(first)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(SandboxUnavailable, match="pool died"):
        await run
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), "its boxes are gone with it")
    await until(lambda: sandbox.is_up, "another pool")
    assert (await sandbox.run(DOUBLE)).passed


async def test_a_client_that_goes_away_takes_its_runs_along(tmp_path: Path) -> None:
    owner = Sandbox(SandboxSettings(slots=2), socket_path=tmp_path / "sandbox.sock")
    await owner.start()
    try:
        assert stat.S_IMODE((tmp_path / "sandbox.sock").stat().st_mode) == 0o600
        client = await Sandbox.connect(tmp_path / "sandbox.sock")
        assert (await client.run(DOUBLE)).passed
        run = asyncio.create_task(client.run(SPIN))
        await until(lambda: boxes(pool_pid(owner)), "a box")
        await client.close()
        with pytest.raises(SandboxUnavailable):
            await run
        await until(lambda: not boxes(pool_pid(owner)), "its box is gone")
        assert (await owner.run(DOUBLE)).passed
    finally:
        await owner.close()
    assert not (tmp_path / "sandbox.sock").exists()


async def test_connecting_where_nobody_listens_says_so(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match=r"no sandbox listens on .*nobody.sock"):
        await Sandbox.connect(tmp_path / "nobody.sock")


async def run_without_descriptors(sandbox: Sandbox, pid: int) -> None:
    """A run while the pool can open nothing; it may just have closed something, so this is tried a few times."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for _ in range(20):
        lowest_free = next(number for number in count() if number not in descriptors(pid))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, hard))
        await sandbox.run(HELLO)


async def test_a_pool_without_descriptors_fails_as_ours_and_recovers(sandbox: Sandbox) -> None:
    await sandbox.run(HELLO)
    pid = pool_pid(sandbox)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with pytest.raises(SandboxUnavailable, match="Too many open files"):
        await run_without_descriptors(sandbox, pid)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert (await sandbox.run(DOUBLE)).passed


async def test_the_pool_keeps_no_descriptor_of_a_run(sandbox: Sandbox) -> None:
    await asyncio.gather(*(sandbox.run(DOUBLE) for _ in range(10)))
    before = len(descriptors(pool_pid(sandbox)))
    await asyncio.gather(*(sandbox.run(DOUBLE) for _ in range(50)), sandbox.run(SPIN, RunLimits(wall_s=0.2)))
    assert len(descriptors(pool_pid(sandbox))) == before


async def test_status_counts_outcomes_and_remembers_the_slowest(sandbox: Sandbox) -> None:
    await sandbox.run(DOUBLE)
    await sandbox.run(SPIN, RunLimits(wall_s=0.3))
    status = await sandbox.status()
    assert status.outcomes == {"passed": 1, "timeout": 1}
    assert (status.slowest[0].outcome, status.slowest[0].mode) == ("timeout", "run")
    assert status.slots == 2
    assert status.p95_s >= status.p50_s > 0
