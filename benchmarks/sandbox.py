"""What isolation costs: ATLAS's sandbox beside what people run candidates with, in one run.

Rows alternate, figures are medians over all rounds. ATLAS is asked through its socket, as the server asks it: a pool process, a
box of its own for every run, tier and `sealed` as stated in each row. The peers are a cold `python -m pytest` (plugins off, in
its favour), bubblewrap around a fresh interpreter, a plain fresh interpreter, and a warm process that forks per candidate without
any isolation, as the graders of public benchmarks do. A fresh interpreter is started before it is asked for, so its row stands
twice: asked for without a break, and with a pause of 50 ms before each run. Load is the machine's, over the last minute.

    python -m benchmarks.sandbox [--rounds 5] [--runs 20] [--seconds 4]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from atlas.sandbox import Sandbox
from atlas.settings import SandboxSettings
from atlas.types import Case, Program, RunLimits
from benchmarks.report import write

CODE = "def add(a, b):\n    return a + b\n"
CASES = tuple(Case(args=f"({i}, {i})", expected=str(2 * i)) for i in range(10))
SEALABLE = "from solution import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"
NOT_SEALABLE = """
import solution


def test_add(monkeypatch):
    monkeypatch.setattr(solution, "SEEN", 1, raising=False)
    assert solution.add(1, 2) == 3
"""
ECHO = "print(sum(map(int, input().split())))\n"
ECHO_CASES = (Case(stdin="1 2\n", expected="3\n"),)
FUNCTION = Program(code=CODE, mode="function", entry_point="add", cases=CASES)
PYTEST = Program(code=CODE, mode="pytest", test_code=NOT_SEALABLE)
FRESH = Program(code=ECHO, mode="stdin", cases=ECHO_CASES, fresh=True)
OURS = {
    "function, 10 cases": FUNCTION,
    "stdin, forked": Program(code=ECHO, mode="stdin", cases=ECHO_CASES),
    "stdin, fresh interpreter": FRESH,
    "pytest, one box": PYTEST,
    "pytest, two boxes": Program(code=CODE, mode="pytest", test_code=SEALABLE),
}
PACED, PAUSE_S = "ATLAS stdin, fresh, after a pause", 0.05
SPIN = Program(code="while True:\n    pass\n")
NUM_SPINNING = 20
CANCELLATIONS = 5
GRADER = """
import os, sys, json
cases = [((i, i), 2 * i) for i in range(10)]
for line in sys.stdin:
    code = json.loads(line)
    pid = os.fork()
    if pid == 0:
        space = {}
        exec(code, space)
        os._exit(0 if all(space["add"](*a) == e for a, e in cases) else 1)
    _, status = os.waitpid(pid, 0)
    print(status, flush=True)
"""


class Peers:
    """What ATLAS is measured beside; each method is one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "solution.py").write_text(CODE)
        (folder / "test_solution.py").write_text(SEALABLE)
        (folder / "calls.py").write_text(CODE + "assert all(add(i, i) == 2 * i for i in range(10))\n")
        self._environ = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        self._grader = subprocess.Popen([sys.executable, "-c", GRADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rows(self) -> dict[str, Callable[[], None]]:
        rows = {"cold python -m pytest": self.cold_pytest, "plain subprocess": self.plain, "forked, not isolated": self.forked}
        return rows | ({"bubblewrap + python": self.bubblewrap} if shutil.which("bwrap") else {})

    def cold_pytest(self) -> None:
        self._run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_solution.py")

    def plain(self) -> None:
        self._run(sys.executable, "-I", "-S", "calls.py")

    def bubblewrap(self) -> None:
        prefixes = {sys.prefix, str(Path(os.path.realpath(sys.executable)).parents[1])}
        binds = [word for prefix in sorted(prefixes) for word in ("--ro-bind", prefix, prefix)]
        system = [word for path in ("/usr", "/bin", "/lib", "/lib64") for word in ("--ro-bind", path, path)]
        view = [*system, *binds, "--proc", "/proc", "--dev", "/dev", "--ro-bind", str(self._folder), "/src", "--chdir", "/src"]
        self._run("bwrap", "--unshare-all", "--cap-drop", "ALL", "--clearenv", *view, sys.executable, "-I", "-S", "calls.py")

    def forked(self) -> None:
        assert self._grader.stdin is not None
        assert self._grader.stdout is not None
        self._grader.stdin.write(json.dumps(CODE) + "\n")
        self._grader.stdin.flush()
        assert self._grader.stdout.readline() == "0\n"

    def close(self) -> None:
        self._grader.terminate()
        self._grader.wait()

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self._folder, env=self._environ, check=True, capture_output=True)


async def ours(sandbox: Sandbox, program: Program) -> dict[str, Any]:
    execution = await sandbox.run(program)
    assert execution.passed, execution
    return {"tier": execution.tier, "sealed": execution.sealed}


async def latencies(sandbox: Sandbox, peers: Peers, *, rounds: int, runs: int) -> list[dict[str, Any]]:
    """Median milliseconds of each row; rows alternate within a round."""
    rows: dict[str, list[float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for name, program in OURS.items():
            facts[f"ATLAS {name}"] = await ours(sandbox, program)
            rows.setdefault(f"ATLAS {name}", []).extend(await timed(lambda: ours(sandbox, program), runs))  # noqa: B023
        facts[PACED] = await ours(sandbox, FRESH)
        rows.setdefault(PACED, []).extend(await timed(lambda: ours(sandbox, FRESH), runs, pause_s=PAUSE_S))
        for name, once in peers.rows().items():
            rows.setdefault(name, []).extend(await timed(lambda: asyncio.to_thread(once), max(3, runs // 4)))  # noqa: B023
    return [
        {"row": name, "median_ms": statistics.median(times), "p90_ms": sorted(times)[int(0.9 * len(times))], "runs": len(times)}
        | facts.get(name, {"tier": "none", "sealed": False})
        for name, times in rows.items()
    ]


async def timed(once: Callable[[], Awaitable[Any]], runs: int, *, pause_s: float = 0.0) -> list[float]:
    """Milliseconds of each run; the pause before it is not counted."""
    times = []
    for _ in range(runs):
        await asyncio.sleep(pause_s)
        started_s = time.perf_counter()
        await once()
        times.append(1e3 * (time.perf_counter() - started_s))
    return times


async def throughput(sandbox: Sandbox, program: Program, seconds: float) -> float:
    """Runs a second with twice as many askers as slots."""
    finished = 0
    end_s = time.perf_counter() + seconds

    async def ask() -> None:
        nonlocal finished
        while time.perf_counter() < end_s:
            await ours(sandbox, program)
            finished += 1

    await asyncio.gather(*(ask() for _ in range(2 * (os.cpu_count() or 1))))
    return finished / seconds


async def cancellation() -> dict[str, float]:
    """Milliseconds until the last process of twenty boxes is gone, whose programs were seen using the processor."""
    sandbox = Sandbox(SandboxSettings(slots=NUM_SPINNING))
    await sandbox.start()
    assert sandbox.pid is not None
    try:
        times = []
        for _ in range(CANCELLATIONS):
            runs = [asyncio.create_task(sandbox.run(SPIN, RunLimits(wall_s=60, cpu_s=60))) for _ in range(NUM_SPINNING)]
            await until_spinning(sandbox.pid)
            watched = [os.pidfd_open(pid) for pid in in_boxes(sandbox.pid)]
            started_s = time.perf_counter()
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
            await asyncio.to_thread(until_gone, watched)
            times.append(1e3 * (time.perf_counter() - started_s))
            while in_boxes(sandbox.pid):  # noqa: ASYNC110 - what has ended is still to be buried
                await asyncio.sleep(0.01)
        return {"median_ms": statistics.median(times), "worst_ms": max(times)}
    finally:
        await sandbox.close()


def until_gone(watched: list[int]) -> None:
    """Wait for the end of these processes, told by the kernel: looking for them would take the processor from them."""
    deadline_s = time.monotonic() + 30
    for descriptor in watched:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(1000 * max(0.0, deadline_s - time.monotonic())), "a box did not end"
        os.close(descriptor)


async def until_spinning(pool: int) -> None:
    deadline_s = time.monotonic() + 60
    while sum(map(is_spinning, in_boxes(pool))) < NUM_SPINNING:
        assert time.monotonic() < deadline_s, "twenty candidates never ran at once"
        await asyncio.sleep(0.02)


def in_boxes(pool: int) -> list[int]:
    """Processes of a pool that lie in a pid namespace two below ours."""
    own = depth(os.getpid())
    return [pid for pid in descendants(pool) if depth(pid) >= own + 2]


def descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def depth(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(len(line.split()) - 1 for line in lines if line.startswith("NSpid:"))
    return 0


def is_spinning(pid: int) -> bool:
    """Whether it has used the processor for 50 ms, and still wants it."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0] == "R" and int(fields[11]) >= 5
    return False


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    sandbox = Sandbox(SandboxSettings())
    await sandbox.start()
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(Path(folder))
        try:
            rows = await latencies(sandbox, peers, rounds=arguments.rounds, runs=arguments.runs)
            rates = {name: [] for name in ("function", "pytest, one box")}  # type: dict[str, list[float]]
            for _ in range(3):
                rates["function"].append(await throughput(sandbox, FUNCTION, arguments.seconds))
                rates["pytest, one box"].append(await throughput(sandbox, PYTEST, arguments.seconds))
        finally:
            peers.close()
            await sandbox.close()
    return {"rows": rows, "runs_per_s": {name: statistics.median(each) for name, each in rates.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    before = os.getloadavg()[0]
    report = asyncio.run(measure(arguments)) | {"cancel_20_ms": asyncio.run(cancellation())}
    report |= {"arguments": vars(arguments), "cores": os.cpu_count(), "load": [before, os.getloadavg()[0]]}
    for row in report["rows"]:
        print(
            f"{row['row']:34} {row['median_ms']:8.1f} ms   p90 {row['p90_ms']:8.1f}   tier {row['tier']:8} sealed {row['sealed']}"
        )
    for name, rate in report["runs_per_s"].items():
        print(f"{name:34} {rate:8.0f} runs/s on {report['cores']} cores")
    gone = report["cancel_20_ms"]
    print(f"{'cancel twenty that spin':34} {gone['median_ms']:8.1f} ms, worst {gone['worst_ms']:.1f}")
    print(f"load before and after: {report['load'][0]:.1f}, {report['load'][1]:.1f}")
    write("sandbox", report)


if __name__ == "__main__":
    main()
