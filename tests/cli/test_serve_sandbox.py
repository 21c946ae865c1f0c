"""The sandbox of a real `atlas serve`: it starts with the server, serves other programs of this user, and ends with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.cli.conftest import RunningServer, arguments_of, children, run_cli, wait_for

Launcher = Callable[..., RunningServer]
TESTS = "from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3\n"


def readyz(server: RunningServer) -> dict[str, object]:
    found: dict[str, object] = httpx.get(f"{server.url}/readyz", timeout=60).json()
    return found


def is_sandboxed(server: RunningServer) -> bool:
    return readyz(server)["sandbox"] == "native"


def pool(server: RunningServer) -> int:
    """Process of the pool, a child of the serving process."""
    [pid] = [child for child in children(server.child) if b"atlas.sandbox.pool" in arguments_of(child)]
    return pid


def execute(server: RunningServer, **body: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {server.key}"}
    return httpx.post(f"{server.url}/v1/sandbox/execute", json=body, headers=headers, timeout=30)


def test_code_is_run_over_http_and_from_the_command_line_in_one_pool(server: RunningServer, tmp_path: Path) -> None:
    wait_for(lambda: is_sandboxed(server))
    assert execute(server, code="def add(a, b): return a + b", test_code=TESTS).json()["success"]
    (tmp_path / "right.py").write_text("def add(a, b): return a + b\n")
    (tmp_path / "tests.py").write_text(TESTS)
    run = server.cli("verify", str(tmp_path / "right.py"), "--tests", str(tmp_path / "tests.py"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert 'atlas_sandbox_runs_total{outcome="passed"} 2.0' in httpx.get(f"{server.url}/metrics", timeout=60).text


def test_a_pool_that_dies_is_replaced_and_the_model_answers_meanwhile(server: RunningServer) -> None:
    wait_for(lambda: is_sandboxed(server))
    first = pool(server)
    os.kill(first, signal.SIGKILL)
    assert server.chat(max_tokens=1).status_code == 200
    wait_for(lambda: execute(server, code="print(1)").status_code == 200)
    assert pool(server) != first
    assert execute(server, code="print(1)").json()["outcome"] == "completed"


def test_the_pool_ends_with_the_serving_process(server: RunningServer) -> None:
    wait_for(lambda: is_sandboxed(server))
    first = pool(server)
    os.kill(server.child, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{first}").exists())
    wait_for(lambda: server.is_ready() and is_sandboxed(server))
    assert execute(server, code="print(1)").json()["outcome"] == "completed"


def test_the_socket_is_this_users_alone_and_gone_afterwards(server: RunningServer) -> None:
    wait_for(lambda: is_sandboxed(server))
    socket = server.data_dir / "sandbox.sock"
    assert socket.stat().st_mode & 0o777 == 0o600
    server.process.terminate()
    server.process.wait(60)
    assert not socket.exists()


def test_a_sandbox_that_refuses_keeps_no_model_from_answering(launch_server: Launcher) -> None:
    server = launch_server("sandbox.python=/nonexistent/python")
    server.wait_ready()
    wait_for(lambda: readyz(server)["sandbox"] == "refused")
    assert readyz(server)["status"] == "ready"
    assert server.chat(max_tokens=1).status_code == 200
    assert execute(server, code="print(1)").json()["error"]["code"] == "sandbox_refused"


def test_a_deep_data_directory_has_a_sandbox_that_is_the_servers_alone(launch_server: Launcher, tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 25)
    server = launch_server(data_dir=deep)
    server.wait_ready()
    wait_for(lambda: is_sandboxed(server))
    assert not (deep / "sandbox.sock").exists()
    (tmp_path / "right.py").write_text("print(1)\n")
    run = server.cli("verify", str(tmp_path / "right.py"))
    assert run.stdout.startswith("not verified: completed"), run.stderr


def test_running_code_without_isolation_takes_a_flag_and_is_shouted_about(launch_server: Launcher) -> None:
    server = launch_server(SERVE_UNSAFE="1")
    server.wait_ready()
    wait_for(lambda: "sandbox.unsafe" in server.stderr.read_text())
    assert "WITHOUT ISOLATION" in server.stderr.read_text()


def test_the_flag_is_no_setting(tmp_path: Path) -> None:
    assert "--unsafe-no-sandbox" in run_cli("serve", "--help").stdout
    config = tmp_path / "atlas.toml"
    config.write_text("[sandbox]\nis_unsafe = true\n")
    run = run_cli("serve", "--config", str(config), ATLAS_HOME=str(tmp_path / "data"))
    assert run.returncode == 1
    assert "unknown field `is_unsafe`" in run.stderr
