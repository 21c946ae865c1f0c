"""`atlas serve` and its worker processes, as they are shipped; only the model is scripted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from atlas import control
from tests.cli.conftest import RunningServer, children, wait_for

FORBIDDEN = ("torch", "llama_cpp", "litestar", "sqlalchemy", "redis")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("served") / "data", "tasks.workers=2")
    server.wait_ready()
    yield server
    server.stop()


def counts(server: RunningServer) -> dict[str, Any]:
    found: dict[str, Any] = control.call(server.data_dir / "atlas.sock", "status")["workers"]
    return found


def workers_of(server: RunningServer) -> list[int]:
    """Processes below the serving one that are workers."""
    return [pid for pid in children(server.child) if b"atlas.ralph" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


def test_the_server_keeps_as_many_workers_as_it_shall(served: RunningServer) -> None:
    wait_for(lambda: counts(served)["connected"] == 2)
    before = workers_of(served)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: before[0] not in workers_of(served) and len(workers_of(served)) == 2 and counts(served)["connected"] == 2)
    assert before[1] in workers_of(served)


def test_readiness_says_that_no_worker_is_there(served: RunningServer) -> None:
    wait_for(lambda: counts(served)["connected"] == 2)
    assert "no worker is connected: tasks wait" not in httpx.get(f"{served.url}/readyz").json()["reasons"]
    pids = workers_of(served)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "no worker is connected: tasks wait" in httpx.get(f"{served.url}/readyz").json()["reasons"])
    wait_for(lambda: counts(served)["connected"] == 2)


def test_workers_end_with_a_serving_process_that_is_killed_and_come_again(served: RunningServer) -> None:
    wait_for(lambda: counts(served)["connected"] == 2)
    before = workers_of(served)
    os.kill(served.child, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before))
    wait_for(served.is_ready)
    wait_for(lambda: counts(served)["connected"] == 2)


def test_a_worker_loads_neither_model_nor_framework_nor_stores() -> None:
    code = f"import atlas.ralph, sys; print([name for name in {FORBIDDEN} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
