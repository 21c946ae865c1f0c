"""The private Redis behind a real `atlas serve`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import RunningServer, children, wait_for
from tests.cli.test_valkey import ask, is_alive

Launcher = Callable[..., RunningServer]


@pytest.fixture(autouse=True)
def of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Redis other tests are told to use."""
    monkeypatch.setattr("tests.ledgers.REDIS_URL", "")


def redis_pid(server: RunningServer) -> int:
    return int((server.data_dir / "live" / "redis.pid").read_text())


def redis_socket(server: RunningServer) -> Path:
    """As redis.pid's process was told; a test's data directory may be too long for a socket."""
    words = Path(f"/proc/{redis_pid(server)}/cmdline").read_bytes().decode().split("\0")
    named = [word.removeprefix("unixsocket:") for word in words[0].split() if word.startswith("unixsocket:")]
    return Path(named[0])


def test_killed_redis_costs_a_moment_of_503(server: RunningServer) -> None:
    assert server.chat().status_code == 200
    before = redis_pid(server)
    os.kill(before, signal.SIGSTOP)  # held, so that what follows meets a Redis that is away
    refused = server.chat()
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "limits_unavailable"
    assert int(refused.headers["retry-after"]) >= 1
    assert httpx.get(f"{server.url}/livez", timeout=60).status_code == 200
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: server.chat().status_code == 200)
    assert redis_pid(server) != before


def test_redis_ends_after_the_server_and_keeps_what_it_counted(server: RunningServer, launch_server: Launcher) -> None:
    assert server.chat().status_code == 200
    pid = redis_pid(server)
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)
    assert not is_alive(pid)
    again = launch_server()
    again.wait_ready()
    again.key = server.key
    assert again.chat().status_code == 200


def test_an_interrupt_from_the_terminal_does_not_reach_redis_first(server: RunningServer) -> None:
    """Ctrl-C goes to the whole process group; Redis is needed until the last answer is counted."""
    pid = redis_pid(server)
    assert os.getsid(pid) != os.getsid(server.process.pid)
    assert os.getpgid(pid) != os.getpgid(server.process.pid)


def test_nothing_is_left_when_the_parent_is_killed(server: RunningServer, launch_server: Launcher) -> None:
    pids = children(server.process.pid)
    assert redis_pid(server) in pids
    assert len(pids) == 2
    server.process.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in pids))
    again = launch_server()
    again.wait_ready()
    again.key = server.key
    assert again.chat().status_code == 200


def test_hanging_up_makes_the_server_read_its_settings_and_go_on(server: RunningServer) -> None:
    pids = children(server.process.pid)
    server.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert server.chat().status_code == 200
    assert children(server.process.pid) == pids


def test_no_url_stands_in_an_argument_list(server: RunningServer) -> None:
    """A URL may hold a password, and everybody on the machine can read arguments."""
    [serving] = [pid for pid in children(server.process.pid) if pid != redis_pid(server)]
    words = Path(f"/proc/{serving}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    assert words[-1].isdigit()
    assert not any("unix:" in word or "{" in word for word in words)


def test_a_missing_binary_is_told_before_anything_starts(launch_server: Launcher) -> None:
    server = launch_server("redis.binary=/nowhere/valkey")
    assert server.process.wait(30) == 1
    assert "redis.binary: /nowhere/valkey is no program" in server.stderr.read_text()


def test_a_redis_by_url_is_used_and_none_started(server: RunningServer, launch_server: Launcher, tmp_path: Path) -> None:
    url = f"unix://{redis_socket(server)}?db=3"
    other = launch_server(f"redis.url={url}", data_dir=tmp_path / "other")
    other.wait_ready()
    assert other.chat().status_code == 200
    assert len(children(other.process.pid)) == 1
    assert "db3:keys=" in ask(redis_socket(server), "INFO keyspace")
