"""What people grade candidates with: a cold pytest each, or a warm process that forks. Neither isolates anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

TIMEOUT_S = 10.0  # of one candidate, as ATLAS's own

WARM = f"""
import json, os, signal, sys
for line in sys.stdin:
    code, tests = json.loads(line)
    pid = os.fork()
    if pid == 0:
        signal.alarm({int(TIMEOUT_S)})
        sys.stdout = sys.stderr = open(os.devnull, "w")
        try:
            space = {{}}
            exec(code, space)
            exec(tests, space)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print(int(status == 0), flush=True)
"""


class Graded(NamedTuple):
    """What a grader found.

    Attributes:
        winner: the first candidate that passed, by time; None if none did.
        wall_s: until it had finished.
        first_s: until the winner was known; `wall_s` if there is none.
    """

    winner: int | None
    wall_s: float
    first_s: float


class ColdPytest:
    """`python -m pytest` for every candidate, plugins off in its favour, one at a time for each processor."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count())
        self._environ = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown()

    def grade(self, codes: Sequence[str], tests: str) -> Graded:
        started_s = time.perf_counter()
        running = {self._pool.submit(self._passes, self._written(code, tests)): number for number, code in enumerate(codes)}
        winner, first_s = None, 0.0
        for ended in as_completed(running):
            if ended.result() and winner is None:
                winner, first_s = running[ended], time.perf_counter() - started_s
        wall_s = time.perf_counter() - started_s
        return Graded(winner, wall_s, wall_s if winner is None else first_s)

    def _written(self, code: str, tests: str) -> Path:
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir(parents=True)
        (folder / "solution.py").write_text(code, "utf-8")
        lines = [f"def test_{number}():\n    {line}\n" for number, line in enumerate(tests.splitlines())]
        (folder / "test_solution.py").write_text("from solution import *\n\n" + "\n".join(lines), "utf-8")
        return folder

    def _passes(self, folder: Path) -> bool:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_solution.py"]
        try:
            done = subprocess.run(command, cwd=folder, env=self._environ, capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


class WarmFork:
    """One warm process that forks for each candidate, in order, up to the first that passes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", WARM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate(timeout=2 * TIMEOUT_S)

    def grade(self, codes: Sequence[str], tests: str) -> Graded:
        started_s = time.perf_counter()
        winner = next((number for number, code in enumerate(codes) if self._passes(code, tests)), None)
        wall_s = time.perf_counter() - started_s
        return Graded(winner, wall_s, wall_s)

    def _passes(self, code: str, tests: str) -> bool:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([code, tests]) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline() == "1\n"
