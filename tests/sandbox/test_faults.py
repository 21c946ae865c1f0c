"""What breaks around the candidate while the pool runs: always a failure of ours, never an outcome, and over when its cause is.

Every fault is a real limit of the kernel's, set on a process that runs; setting it takes being the same user as that process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from atlas.errors import SandboxUnavailable
from atlas.sandbox import Sandbox
from atlas.settings import SandboxSettings
from atlas.types import Case, Program
from tests.sandbox.as_user import REPOSITORY, needs_root, run_tests_as_user
from tests.sandbox.processes import boxes, until, zygotes

as_user = pytest.mark.skipif(os.getuid() == 0, reason="an ordinary user's, see below")
HELLO = Program(code="print('hello')")
FRESH = Program(code="print('hello')", fresh=True)
DOUBLE = Program(
    code="def double(x):\n    return 2 * x\n", mode="function", entry_point="double", cases=(Case(args="(2,)", expected="4"),)
)
TESTS = Program(
    code="def one(): return 1\n", mode="pytest", test_code="from solution import one\ndef test(): assert one() == 1\n"
)
EVERY = [HELLO, FRESH, DOUBLE, TESTS]


@pytest.fixture
async def pool() -> AsyncIterator[Sandbox]:
    """One that has run everything once, and has nothing prepared that would serve one run more."""
    sandbox = Sandbox(SandboxSettings(slots=2))
    await sandbox.start()
    for program in EVERY:
        await sandbox.run(program)
    without_spares(pid_of(sandbox))
    await until(lambda: not boxes(pid_of(sandbox)), "no box is left")
    yield sandbox
    await sandbox.close()


def pid_of(sandbox: Sandbox) -> int:
    assert sandbox.pid is not None
    return sandbox.pid


@contextlib.contextmanager
def limited(pids: list[int], which: int, most: int) -> Iterator[None]:
    before = {pid: resource.prlimit(pid, which) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, which, (most, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, which, limits)


async def all_fail_as_ours(sandbox: Sandbox, said: str, programs: list[Program] = EVERY) -> None:
    for program in programs:
        with pytest.raises(SandboxUnavailable, match=said):
            await sandbox.run(program)


async def all_is_well(sandbox: Sandbox) -> None:
    assert (await sandbox.run(HELLO)).stdout == "hello\n"
    assert (await sandbox.run(FRESH)).stdout == "hello\n"
    assert (await sandbox.run(DOUBLE)).passed
    assert (await sandbox.run(TESTS)).passed


def without_spares(pool: int) -> None:
    for pid in boxes(pool):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)


@as_user
async def test_a_machine_without_room_for_processes_is_our_failure(pool: Sandbox) -> None:
    with limited(zygotes(pid_of(pool)), resource.RLIMIT_NPROC, 1):
        await all_fail_as_ours(pool, "a box could not be made: .*clone|a fresh interpreter did not start")
    await all_is_well(pool)


@as_user
async def test_room_for_the_first_process_of_a_box_only_is_our_failure_and_makes_no_second_server(pool: Sandbox) -> None:
    servers = zygotes(pid_of(pool))
    with limited(servers, resource.RLIMIT_NPROC, 3):  # launcher, zygote and one more in their namespace
        await all_fail_as_ours(pool, "a box could not be made: .*fork", [HELLO])
        assert (await pool.run(DOUBLE)).passed  # which needs no second one
    await all_is_well(pool)
    assert zygotes(pid_of(pool)) == servers


async def test_no_room_for_what_a_box_shall_read_is_our_failure(pool: Sandbox) -> None:
    with limited([pid_of(pool)], resource.RLIMIT_FSIZE, 16):
        await all_fail_as_ours(pool, "File too large")
    await all_is_well(pool)


@as_user
async def test_a_zygote_without_descriptors_is_our_failure(pool: Sandbox) -> None:
    with limited(zygotes(pid_of(pool)), resource.RLIMIT_NOFILE, 4):
        for program in EVERY:
            with pytest.raises(SandboxUnavailable):
                await pool.run(program)
    await all_is_well(pool)


NAMESPACES = "/proc/sys/user/max_user_namespaces"
LOSE_TIER = f"""
import asyncio
from pathlib import Path
from atlas.errors import SandboxUnavailable
from atlas.sandbox import Sandbox
from atlas.settings import SandboxSettings
from tests.sandbox.test_faults import EVERY, all_fail_as_ours, all_is_well, pid_of, without_spares
async def main():
    sandbox = Sandbox(SandboxSettings(slots=2))
    await sandbox.start()
    await all_is_well(sandbox)
    assert (await sandbox.status()).tier == "native"
    before = Path({NAMESPACES!r}).read_text()
    Path({NAMESPACES!r}).write_text("0")
    without_spares(pid_of(sandbox))
    await all_fail_as_ours(sandbox, "a box could not be made: .*clone|a fresh interpreter did not start")
    assert (await sandbox.status()).tier == "native"  # and nothing weaker was tried
    Path({NAMESPACES!r}).write_text(before)
    await all_is_well(sandbox)
    await sandbox.close()
    print("well")
asyncio.run(main())
"""


@as_user
def test_a_tier_that_is_lost_while_the_pool_runs_is_our_failure_and_no_weaker_one_is_taken() -> None:
    """In a user namespace of the test's own, whose number of namespaces it may set."""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", LOSE_TIER]
    if subprocess.run([*command[:3], "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces are not to be had here")
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.endswith("well\n"), done.stdout + done.stderr
    assert "sandbox.failed" in done.stderr  # the pool has said it


@needs_root
def test_the_same_as_an_ordinary_user() -> None:
    run_tests_as_user(__file__, timeout_s=300)
