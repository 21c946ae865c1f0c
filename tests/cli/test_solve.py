"""`atlas solve` on a real server with a scripted engine, and a real sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import RunningServer, run_cli

RIGHT = "Here:\n```python\ndef f(x):\n    return x + 1\n```\n"
TASK = "Write f(x), which adds one.\n"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.txt"
    path.write_text(TASK, "utf-8")
    return path


def started(launch_server: Callable[..., RunningServer], reply: str) -> RunningServer:
    server = launch_server(SCRIPTED_REPLY=reply)
    server.wait_ready()
    return server


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


def test_a_verified_answer_is_the_only_thing_on_stdout(
    launch_server: Callable[..., RunningServer], task: Path, tmp_path: Path
) -> None:
    server = started(launch_server, RIGHT)
    tests = write(tmp_path / "tests.py", "assert f(1) == 2\nassert f(2) == 3\nassert f(3) == 4\n")
    done = server.cli("solve", str(task), "--tests", tests, "-k", "2")
    assert done.stdout == "def f(x):\n    return x + 1\n", done.stderr
    assert done.returncode == 0
    told = done.stderr.splitlines()
    assert told[0] == "3 tests, 1 of them held back"
    assert told[1].startswith("attempt 1: 2 candidates")
    assert any("passed, 3 of 3 tests" in line for line in told)
    assert told[-1].startswith("verified: 3 of 3 given tests (tier ")


def test_an_answer_that_fails_is_shown_and_exits_1(
    launch_server: Callable[..., RunningServer], task: Path, tmp_path: Path
) -> None:
    server = started(launch_server, RIGHT)
    tests = write(tmp_path / "tests.py", "assert f(1) == 77\n")
    done = server.cli("solve", str(task), "--tests", tests, "-k", "1", "--attempts", "1")
    assert done.returncode == 1
    assert "return x + 1" in done.stdout
    assert "expected 77, returned 2" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("failed: 0 of 1 given tests")


def test_json_holds_the_whole_run_and_stdin_is_a_task(launch_server: Callable[..., RunningServer]) -> None:
    server = started(launch_server, RIGHT)
    environ = {"ATLAS_HOME": str(server.data_dir), **server.environ}
    done = run_cli("solve", "-", "--json", "-k", "1", stdin=TASK + ">>> f(1)\n2\n", **environ)
    run = json.loads(done.stdout)
    assert done.returncode == 0
    assert (run["verdict"]["status"], run["verdict"]["tests_run"], run["code"]) == (
        "verified",
        1,
        "def f(x):\n    return x + 1\n",
    )


def test_tests_that_are_none_are_one_line_on_stderr(
    launch_server: Callable[..., RunningServer], task: Path, tmp_path: Path
) -> None:
    server = started(launch_server, RIGHT)
    done = server.cli("solve", str(task), "--tests", write(tmp_path / "tests.py", "x = 1\n"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("atlas: the tests hold no test"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_server_it_says_how_to_start_one(task: Path, tmp_path: Path) -> None:
    done = run_cli("solve", str(task), "--data-dir", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "atlas serve" in done.stderr


def test_a_receipt_is_verified_by_running_it_again_and_notices_a_change(
    launch_server: Callable[..., RunningServer], task: Path, tmp_path: Path
) -> None:
    server = started(launch_server, RIGHT)
    receipt, tests = tmp_path / "receipt.json", write(tmp_path / "tests.py", "assert f(1) == 2\n")
    assert server.cli("solve", str(task), "--tests", tests, "-k", "1", "--receipt", str(receipt)).returncode == 0
    server.stop()
    good = run_cli("verify", str(receipt), "--json")
    assert good.returncode == 0, good.stderr
    found = json.loads(good.stdout)
    assert (found["agrees"], found["tests_passed"], found["verdict"]["status"]) == (True, 1, "verified")
    assert run_cli("verify", str(receipt), "--no-run", "--fingerprint", found["fingerprint"]).returncode == 0
    strange = run_cli("verify", str(receipt), "--no-run", "--fingerprint", "sha256:00")
    assert (strange.returncode, strange.stdout) == (1, "")
    assert "not the pinned key" in strange.stderr
    write(receipt, receipt.read_text("utf-8").replace("x + 1", "x + 2"))
    changed = run_cli("verify", str(receipt))
    assert (changed.returncode, len(changed.stderr.splitlines())) == (1, 1)
    assert "was changed after it was signed" in changed.stderr
