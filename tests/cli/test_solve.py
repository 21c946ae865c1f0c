"""`atlas solve` on a real server with a scripted engine, and a real sandbox."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.conftest import RunningServer, clean_environment, run_cli, wait_for

RIGHT = "Here:\n```python\ndef f(x):\n    return x + 1\n```\n"
TASK = "Write f(x), which adds one.\n"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.txt"
    path.write_text(TASK, "utf-8")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("solving") / "data", "tasks.workers=1", SCRIPTED_REPLY=RIGHT)
    server.wait_ready()
    yield server
    server.stop()


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


def test_a_verified_answer_is_the_only_thing_on_stdout(server: RunningServer, task: Path, tmp_path: Path) -> None:
    tests = write(tmp_path / "tests.py", "assert f(1) == 2\nassert f(2) == 3\nassert f(3) == 4\n")
    done = server.cli("solve", str(task), "--tests", tests, "-k", "2")
    assert done.stdout == "def f(x):\n    return x + 1\n", done.stderr
    assert done.returncode == 0
    told = done.stderr.splitlines()
    assert told[0] == "3 tests, 1 of them held back"
    assert told[1].startswith("attempt 1: 2 candidates")
    assert any("passed, 3 of 3 tests" in line for line in told)
    assert told[-1].startswith("verified: 3 of 3 given tests (tier ")


def test_an_answer_that_fails_is_shown_and_exits_1(server: RunningServer, task: Path, tmp_path: Path) -> None:
    tests = write(tmp_path / "tests.py", "assert f(1) == 77\n")
    done = server.cli("solve", str(task), "--tests", tests, "-k", "1", "--attempts", "1")
    assert done.returncode == 1
    assert "return x + 1" in done.stdout
    assert "expected 77, returned 2" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("failed: 0 of 1 given tests")


def test_json_holds_the_whole_run_and_stdin_is_a_task(server: RunningServer) -> None:
    environ = {"ATLAS_HOME": str(server.data_dir), **server.environ}
    done = run_cli("solve", "-", "--json", "-k", "1", stdin=TASK + ">>> f(1)\n2\n", **environ)
    run = json.loads(done.stdout)
    assert done.returncode == 0
    assert (run["verdict"]["status"], run["verdict"]["tests_run"], run["code"]) == (
        "verified",
        1,
        "def f(x):\n    return x + 1\n",
    )


def test_tests_that_are_none_are_one_line_on_stderr(server: RunningServer, task: Path, tmp_path: Path) -> None:
    done = server.cli("solve", str(task), "--tests", write(tmp_path / "tests.py", "x = 1\n"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("atlas: /v1/tasks: HTTP 400: the tests hold no test"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_server_it_says_how_to_start_one(task: Path, tmp_path: Path) -> None:
    done = run_cli("solve", str(task), "--data-dir", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "atlas serve" in done.stderr


def test_a_receipt_is_verified_by_running_it_again_and_notices_a_change(
    server: RunningServer, task: Path, tmp_path: Path
) -> None:
    receipt, tests = tmp_path / "receipt.json", write(tmp_path / "tests.py", "assert f(1) == 2\n")
    assert server.cli("solve", str(task), "--tests", tests, "-k", "1", "--receipt", str(receipt)).returncode == 0
    good = run_cli("verify", str(receipt), "--json")
    assert good.returncode == 0, good.stderr
    found = json.loads(good.stdout)
    assert (found["agrees"], found["tests_passed"], found["verdict"]["status"]) == (True, 1, "verified")
    assert run_cli("verify", str(receipt), "--no-run", "--fingerprint", found["fingerprint"]).returncode == 0
    assert (server.data_dir / "secrets" / "receipt-key").exists()
    strange = run_cli("verify", str(receipt), "--no-run", "--fingerprint", "sha256:00")
    assert (strange.returncode, strange.stdout) == (1, "")
    assert "not the pinned key" in strange.stderr
    write(receipt, receipt.read_text("utf-8").replace("x + 1", "x + 2"))
    changed = run_cli("verify", str(receipt))
    assert (changed.returncode, len(changed.stderr.splitlines())) == (1, 1)
    assert "was changed after it was signed" in changed.stderr


def test_interrupted_it_cancels_its_task(launch_server: Callable[..., RunningServer], task: Path) -> None:
    server = launch_server("tasks.workers=1", SCRIPTED_REPLY=RIGHT, SCRIPTED_DELAY_S="5")
    server.wait_ready()
    with solving(server, str(task), "-k", "1") as process:
        wait_for(lambda: [one["state"] for one in tasks_of(server)] == ["running"])
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    wait_for(lambda: [one["outcome"] for one in tasks_of(server)] == ["cancelled"])


def test_watching_it_solves_again_when_a_file_changes(server: RunningServer, task: Path, tmp_path: Path) -> None:
    tests = write(tmp_path / "tests.py", "assert f(1) == 77\n")
    with solving(server, str(task), "--tests", tests, "-k", "1", "--attempts", "1", "--watch") as process:
        assert process.stderr is not None
        lines, told = iter(process.stderr.readline, ""), list[str]()

        def read_until(word: str) -> None:
            for line in lines:
                told.append(line)
                if line.startswith(word):
                    return
            raise AssertionError(f"ended before {word!r}: {told}")

        read_until("failed")
        write(tmp_path / "tests.py", "assert f(1) == 2\n")
        read_until("verified")
        write(tmp_path / "tests.py", "x = 1\n")
        read_until("atlas: /v1/tasks: HTTP 400: the tests hold no test")
        write(tmp_path / "tests.py", "assert f(2) == 3\n")
        read_until("verified")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert told.count("changed: solving again\n") == 3


@pytest.mark.slow
def test_a_server_that_starts_again_meanwhile_is_waited_for(launch_server: Callable[..., RunningServer], task: Path) -> None:
    server = launch_server("tasks.workers=1", "tasks.lease_s=2", SCRIPTED_REPLY=RIGHT, SCRIPTED_DELAY_S="0.3")
    server.wait_ready()
    with solving(server, str(task), "-k", "1", "--json", "--tests", write(task.with_name("t.py"), "assert f(1) == 2")) as process:
        wait_for(lambda: [one["state"] for one in tasks_of(server)] == ["running"])
        os.kill(server.child, signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["verdict"]["status"] == "verified"


def test_watching_stdin_makes_no_sense(task: Path) -> None:
    assert run_cli("solve", "-", "--watch").returncode == 2
    assert run_cli("solve", "-", "--tests", "-").returncode == 2


@contextmanager
def solving(server: RunningServer, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`atlas solve` while it runs; ended if it has not ended itself."""
    environ = clean_environment(**{"ATLAS_HOME": str(server.data_dir), "PYTHONUNBUFFERED": "1", **server.environ})
    command = [sys.executable, "-m", "atlas", "solve", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
    with process:
        try:
            yield process
        finally:
            process.kill()


def tasks_of(server: RunningServer) -> list[dict[str, Any]]:
    """The newest first; none while the server does not answer. They are the owner's, by whatever key they were submitted."""
    try:
        reply = httpx.get(f"{server.url}/v1/tasks", headers={"authorization": f"Bearer {server.key}"}, timeout=10)
    except httpx.TransportError:
        return []
    found: list[dict[str, Any]] = reply.json()["data"] if reply.is_success else []
    return found


SHOP = "def total(prices):\n    return sum(prices) + 1\n"
MENDED = SHOP.replace(" + 1", "")
EDIT = "shop.py\n```python\n<<<<<<< SEARCH\n    return sum(prices) + 1\n=======\n    return sum(prices)\n>>>>>>> REPLACE\n```\n"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    write(folder / "shop.py", SHOP)
    write(folder / "test_shop.py", "from shop import total\n\ndef test_total():\n    assert total([1, 2]) == 3\n")
    return folder


@pytest.fixture(scope="module")
def mender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Its model mends the shop."""
    server = RunningServer(tmp_path_factory.mktemp("mending") / "data", "tasks.workers=1", SCRIPTED_REPLY=EDIT)
    server.wait_ready()
    yield server
    server.stop()


def in_project(server: RunningServer, shop: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environ = {"ATLAS_HOME": str(server.data_dir), **server.environ}
    tests = "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 pytest -q"
    arguments = ["--project", str(shop), "--tests", tests, "--python", sys.executable, "-k", "1", "--attempts", "1", *more]
    return run_cli("solve", "-", *arguments, stdin="The total is wrong by one.", **environ)


def test_a_project_task_ends_as_a_diff_that_passes_the_projects_tests(mender: RunningServer, shop: Path) -> None:
    done = in_project(mender, shop, "--name", "total")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("diff --git a/shop.py b/shop.py")
    assert "-    return sum(prices) + 1\n+    return sum(prices)\n" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("verified: 1 of 1 given tests")
    assert (shop / "shop.py").read_text("utf-8") == SHOP


def test_a_verified_change_is_made_in_the_files_on_request_and_no_other(mender: RunningServer, shop: Path) -> None:
    assert in_project(mender, shop, "--file", "shop.py", "--write").returncode == 0
    assert (shop / "shop.py").read_text("utf-8") == MENDED
    again = in_project(mender, shop, "--file", "shop.py", "--write")
    assert again.returncode == 1
    assert (shop / "shop.py").read_text("utf-8") == MENDED


def test_which_file_is_meant_has_to_be_known(mender: RunningServer, shop: Path) -> None:
    unknown = in_project(mender, shop)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "--file" in unknown.stderr
    assert run_cli("solve", str(shop / "shop.py"), "--write").returncode == 2


def test_only_the_owner_of_the_machine_may_name_a_directory_of_it(mender: RunningServer, shop: Path) -> None:
    body = {"task": "x", "context": [{"path": "shop.py", "text": SHOP}], "project": {"directory": str(shop)}}
    headers = {"authorization": f"Bearer {mender.key}"}
    with httpx.Client(base_url=mender.url, headers=headers, timeout=20) as http:
        assert http.post("/v1/tasks", json=body, headers={"via": "1.1 proxy"}).status_code == 403
        assert http.post("/v1/tasks", json=body | {"tests": "assert f(1) == 2"}).status_code == 400
