"""`atlas serve` and its worker processes, as they are shipped; only the model is scripted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from atlas import control
from atlas.directory import DataDirectory
from atlas.settings import LedgerSettings
from atlas.store import open_store
from tests.cli.conftest import RunningServer, arguments_of, children, clean_environment, run_cli, wait_for

FORBIDDEN = ("torch", "llama_cpp", "litestar", "sqlalchemy", "redis")


RIGHT = "```python\ndef double(x):\n    return 2 * x\n```\n"
BODY = {"task": "Write double(x).", "tests": "assert double(4) == 8\nassert double(0) == 0", "k": 1, "max_attempts": 1}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("served") / "data", "tasks.workers=2", SCRIPTED_REPLY=RIGHT)
    server.wait_ready()
    yield server
    server.stop()


def counts(server: RunningServer) -> dict[str, Any]:
    found: dict[str, Any] = control.call(server.data_dir / "atlas.sock", "status")["workers"]
    return found


def workers_of(server: RunningServer) -> list[int]:
    """Processes below the serving one that are workers."""
    return [pid for pid in children(server.child) if b"atlas.ralph" in arguments_of(pid)]


def test_the_server_keeps_as_many_workers_as_it_shall(served: RunningServer) -> None:
    wait_for(lambda: counts(served)["connected"] == 2)
    before = workers_of(served)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: before[0] not in workers_of(served) and len(workers_of(served)) == 2 and counts(served)["connected"] == 2)
    assert before[1] in workers_of(served)


def test_workers_end_with_a_serving_process_that_is_killed_and_come_again(served: RunningServer) -> None:
    wait_for(lambda: counts(served)["connected"] == 2)
    before = workers_of(served)
    os.kill(served.child, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before))
    wait_for(served.is_ready)
    wait_for(lambda: counts(served)["connected"] == 2)


@contextmanager
def started(*arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """`atlas worker`, ended in order; what it has said is on its stderr."""
    command = [sys.executable, "-m", "atlas", "worker", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean_environment(**environ))
    try:
        yield process
        process.terminate()
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.communicate()


def solved(server: RunningServer, timeout_s: float = 60.0) -> dict[str, Any]:
    """A task that was submitted and closed."""
    with httpx.Client(base_url=server.url, headers={"x-api-key": server.key}, verify=False, timeout=20) as http:
        task_id = http.post("/v1/tasks", json=BODY).raise_for_status().json()["id"]
        wait_for(lambda: http.get(f"/v1/tasks/{task_id}").json()["state"] == "closed", timeout_s)
        found: dict[str, Any] = http.get(f"/v1/tasks/{task_id}").json()
        return found


def worker_key(server: RunningServer) -> str:
    made = server.cli("keys", "create", "--name", "worker", "--scope", "worker", "--json")
    return str(json.loads(made.stdout)["key"])


def test_workers_on_this_machine_and_behind_tls_solve_what_is_submitted(tmp_path: Path) -> None:
    server = RunningServer(tmp_path / "data", "server.tls=auto", SCRIPTED_REPLY=RIGHT)
    try:
        server.wait_ready()
        with started(ATLAS_HOME=str(server.data_dir)):
            assert solved(server)["outcome"] == "done"
        key, ca = worker_key(server), str(server.data_dir / "tls" / "ca.pem")
        with started("--server", server.url, "--ca", ca, ATLAS_API_KEY=key, ATLAS_HOME=str(tmp_path / "far")):
            task = solved(server)
        assert (task["outcome"], task["result"]["verdict"]["status"]) == ("done", "verified")
        stranger = run_cli("worker", "--server", server.url, "--server-sandbox", ATLAS_API_KEY=key)
        assert (stranger.returncode, "name its authority with --ca" in stranger.stderr) == (1, True)
    finally:
        server.stop()


def test_a_worker_whose_server_is_started_again_goes_on_with_its_task(tmp_path: Path) -> None:
    server = RunningServer(tmp_path / "data", SCRIPTED_REPLY="# " + "word " * 200 + "\n" + RIGHT, SCRIPTED_DELAY_S="0.02")
    try:
        server.wait_ready()
        with (
            started(ATLAS_HOME=str(server.data_dir)),
            httpx.Client(base_url=server.url, headers={"x-api-key": server.key}) as http,
        ):
            task_id = http.post("/v1/tasks", json=BODY).raise_for_status().json()["id"]
            wait_for(lambda: http.get(f"/v1/tasks/{task_id}").json()["state"] == "running")
            os.kill(server.child, signal.SIGKILL)
            wait_for(server.is_ready)
            wait_for(lambda: http.get(f"/v1/tasks/{task_id}").json()["state"] == "closed", 90)
            task = http.get(f"/v1/tasks/{task_id}").json()
        assert (task["outcome"], task["num_deliveries"]) == ("done", 1)
    finally:
        server.stop()


def test_a_server_that_is_stopped_leaves_its_tasks_for_the_next_one(tmp_path: Path) -> None:
    slow = "# " + "word " * 2000 + "\n" + RIGHT
    first = RunningServer(tmp_path / "data", "tasks.workers=1", SCRIPTED_REPLY=slow, SCRIPTED_DELAY_S="0.05")
    try:
        first.wait_ready()
        with httpx.Client(base_url=first.url, headers={"x-api-key": first.key}, timeout=20) as http:
            task_id = http.post("/v1/tasks", json=BODY).raise_for_status().json()["id"]
            wait_for(lambda: http.get(f"/v1/tasks/{task_id}").json()["state"] == "running")
            wait_for(lambda: re.search(r"^atlas_requests_running.* [1-9]", http.get("/metrics").text, re.MULTILINE) is not None)
        first.process.terminate()
        assert first.process.wait(30) == 0
    finally:
        first.stop()
    second = RunningServer(tmp_path / "data", "tasks.workers=1", SCRIPTED_REPLY=RIGHT)
    try:
        second.wait_ready()
        with httpx.Client(base_url=second.url, headers={"x-api-key": first.key}, timeout=20) as http:
            wait_for(lambda: http.get(f"/v1/tasks/{task_id}").json()["state"] == "closed", 60)
            assert http.get(f"/v1/tasks/{task_id}").json()["outcome"] == "done"
    finally:
        second.process.terminate()
        second.process.wait(30)
        second.stop()
    directory = DataDirectory(tmp_path / "data")
    directory.hold()
    with contextlib.closing(open_store(directory, settings=LedgerSettings(url=second.ledger_url))) as store:
        task = store.tasks.get(task_id)
        assert task is not None
        assert (task.delivery, task.excused) == (2, 1)
        states = [usage.state for usage in store.usage.recent(limit=10) if usage.request_id.startswith(task_id)]
        assert sorted(states) == ["completed", "interrupted"]
    directory.release()


def test_a_sandbox_that_dies_under_a_worker_of_the_server_costs_it_nothing(served: RunningServer) -> None:
    wait_for(lambda: counts(served)["connected"] == 2)
    with httpx.Client(base_url=served.url, headers={"x-api-key": served.key}, timeout=20) as http:
        tests = "import time\ntime.sleep(2.0)\nassert double(4) == 8"
        task_id = http.post("/v1/tasks", json=BODY | {"tests": tests}).raise_for_status().json()["id"]
        wait_for(lambda: "atlas_sandbox_running 1.0" in http.get("/metrics").text)
        [pool] = [pid for pid in children(served.child) if b"atlas.sandbox.pool" in arguments_of(pid)]
        os.kill(pool, signal.SIGKILL)
        wait_for(lambda: http.get(f"/v1/tasks/{task_id}").json()["state"] == "closed", 90)
        task = http.get(f"/v1/tasks/{task_id}").json()
    assert (task["outcome"], task["num_deliveries"], task["result"]["verdict"]["status"]) == ("done", 1, "verified")


def test_what_a_person_got_wrong_about_a_worker_is_one_line(served: RunningServer, tmp_path: Path) -> None:
    nowhere = run_cli("worker", ATLAS_HOME=str(tmp_path / "none"))
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (1, 1)
    assert "start one with `atlas serve`" in nowhere.stderr
    keyless = run_cli("worker", "--server", served.url)
    assert keyless.returncode == 1
    assert "a key of scope `worker`" in keyless.stderr
    wrong = run_cli("worker", "--server", served.url, "--server-sandbox", "--key", served.key)
    assert wrong.returncode == 1
    assert "the scope 'worker' is needed here" in wrong.stderr.splitlines()[-1]
    no_address = run_cli("worker", "--server", "gpu.example:8000", "--server-sandbox", "--key", served.key)
    assert (no_address.returncode, no_address.stderr.count("\n")) == (1, 1)
    assert "https://HOST:PORT" in no_address.stderr


def test_a_worker_loads_neither_model_nor_framework_nor_stores() -> None:
    code = f"import atlas.ralph, sys; print([name for name in {FORBIDDEN} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
