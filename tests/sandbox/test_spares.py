"""Boxes prepared ahead: they serve one run each, of the kind they were made for, and are not missed when they are gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from atlas.sandbox import Sandbox, spares
from atlas.sandbox.boxes import BoxSpec
from atlas.sandbox.native import NativeBoxes
from atlas.types import Program, RunLimits
from tests.sandbox.processes import boxes as boxes_of
from tests.sandbox.processes import children, descriptors, until, zygotes

UID = 64779
TELL = "import os\nprint(input(), hash('atlas'), os.stat('/proc/self').st_ctime_ns, os.listdir(), open('a/b/text').read())\n"
LOOK_AT_KEEPER = """
import os, signal, time
time.sleep(1)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
    try:
        os.kill(1, number)
    except OSError:
        pass
is_interrupted = signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(os.getpid(), os.getsid(0), os.path.exists("/proc/1"), is_interrupted)
"""


@pytest.fixture
async def boxes() -> AsyncIterator[NativeBoxes]:
    boxes = NativeBoxes(python=sys.executable, uid=UID, slots=2)
    await boxes.start()
    yield boxes
    await boxes.close()


def fresh(code: str, *, stdin: bytes = b"", files: dict[str, str] | None = None, **limits: float) -> BoxSpec:
    spec_limits = RunLimits(**limits)  # type: ignore[arg-type]
    return BoxSpec(
        runner="run", payload={}, files={**(files or {}), "main.py": code}, stdin=stdin, limits=spec_limits, fresh=True
    )


async def prepared() -> int:
    """The first process of the only box that waits."""
    await until(lambda: boxes_of(os.getpid()), "a box that waits")
    return boxes_of(os.getpid())[0]


def status_of(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


async def test_the_next_run_of_the_kind_is_served_by_a_box_that_was_there_before(boxes: NativeBoxes) -> None:
    assert (await boxes.run(fresh("print(1)"))).stdout == b"1\n"
    waiting = await prepared()
    running = asyncio.create_task(boxes.run(fresh("import time\nprint('on')\ntime.sleep(1)")))
    await until(lambda: len(boxes_of(os.getpid())) >= 3, "the next one beside it")
    assert waiting in boxes_of(os.getpid())
    result = await running
    assert (result.ending, result.exit_code, result.stdout) == ("exit", 0, b"on\n")
    assert waiting not in boxes_of(os.getpid())
    assert 0.9 < result.wall_s < 10  # from when it was taken


async def test_the_next_one_is_on_its_way_while_the_last_gets_ready(boxes: NativeBoxes) -> None:
    await boxes.run(fresh("print(1)"))
    keeper = await prepared()
    os.kill(keeper, signal.SIGSTOP)  # it starts nothing any more
    stopped = [keeper, *children(keeper)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    running = asyncio.create_task(boxes.run(fresh("print(2)")))
    await until(lambda: set(boxes_of(os.getpid())) - set(stopped), "another one beside it")
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert (await running).stdout == b"2\n"


async def test_what_keeps_a_fresh_interpreter_is_confined_as_it_is_and_neither_seen_nor_ended_by_it(boxes: NativeBoxes) -> None:
    running = asyncio.create_task(boxes.run(fresh(LOOK_AT_KEEPER)))
    keeper = await prepared()
    await until(lambda: children(keeper), "its program")
    status = status_of(keeper)
    assert [status[name] for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")] == ["0" * 16, "0" * 16, "1", "2"]
    result = await running
    assert (result.ending, result.exit_code, result.stdout) == ("exit", 0, b"2 2 False True\n"), result.stderr


async def test_a_traceback_shows_nothing_of_what_runs_it(boxes: NativeBoxes) -> None:
    for _ in range(2):  # the second is one that waited
        result = await boxes.run(fresh("def f():\n    1 / 0\n\n\nf()"))
        lines = [line.strip() for line in result.stderr.decode().splitlines() if line.startswith("  File")]
        assert lines == ['File "/box/work/main.py", line 5, in <module>', 'File "/box/work/main.py", line 2, in f']
        assert result.exit_code == 1
        await prepared()


async def test_it_gets_its_own_input_files_and_hash_seed_and_nothing_of_another(boxes: NativeBoxes) -> None:
    told = []
    for number in range(3):
        files = {"a/b/text": f"text {number}", f"own-{number}": ""}
        result = await boxes.run(fresh(TELL, stdin=b"line %d\n" % number, files=files))
        assert (result.ending, result.exit_code) == ("exit", 0), result.stderr
        told.append(result.stdout.decode().split())
        await prepared()
    assert [words[:2] for words in told] == [["line", str(number)] for number in range(3)]
    assert len({words[2] for words in told}) == 3
    for number, words in enumerate(told):
        assert f"'own-{number}'" in " ".join(words)
        assert sum("own-" in word for word in words) == 1
        assert words[-2:] == ["text", str(number)]


async def test_large_orders_and_inputs_arrive_whole(boxes: NativeBoxes) -> None:
    await boxes.run(fresh(""))
    await prepared()
    text = "x" * 3_000_000
    code = "import sys\nprint(len(sys.stdin.read()), len(open('big').read()))"
    assert (await boxes.run(fresh(code, stdin=b"y" * 5_000_000, files={"big": text}))).stdout == b"5000000 3000000\n"


async def test_one_with_other_limits_is_not_taken(boxes: NativeBoxes) -> None:
    limit = "import resource\nprint(resource.getrlimit(resource.RLIMIT_FSIZE)[0])"
    for size in (1 << 20, 2 << 20, 1 << 20):
        assert (await boxes.run(fresh(limit, file_size_bytes=size))).stdout == f"{size}\n".encode()


async def test_its_wall_time_is_the_run_s(boxes: NativeBoxes) -> None:
    await boxes.run(fresh(""))
    await prepared()
    result = await boxes.run(fresh("while True: pass", wall_s=0.5))
    assert result.ending == "wall"
    assert 0.4 < result.wall_s < 5


@pytest.mark.parametrize("find", [boxes_of, zygotes])
async def test_one_that_has_died_by_itself_or_with_its_zygote_is_not_missed(
    sandbox: Sandbox, find: Callable[[int], list[int]]
) -> None:
    program = Program(code="print('well')", fresh=True)
    await sandbox.run(program)
    assert sandbox.pid is not None
    pool = sandbox.pid
    await until(lambda: boxes_of(pool), "a box that waits")
    for pid in find(pool):
        with contextlib.suppress(ProcessLookupError):  # gone with the one before
            os.kill(pid, 9)
    assert (await sandbox.run(program)).stdout == "well\n"


async def test_a_run_cancelled_while_its_box_gets_ready_leaves_nothing(boxes: NativeBoxes) -> None:
    await boxes.run(fresh(""))
    await boxes.rest()
    before = len(descriptors(os.getpid()))
    for delay_s in (0.0, 0.002, 0.005, 0.01, 0.02):
        await boxes.run(fresh(""))
        running = asyncio.create_task(boxes.run(fresh("import time\ntime.sleep(60)")))
        await asyncio.sleep(delay_s)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    await boxes.rest()
    await until(lambda: not boxes_of(os.getpid()), "no box is left")
    assert len(descriptors(os.getpid())) == before


async def test_one_that_nobody_asks_for_is_ended(boxes: NativeBoxes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "IDLE_S", 2.0)
    await boxes.run(fresh(""))
    await prepared()
    await until(lambda: not boxes_of(os.getpid()), "the box is ended")
