"""A server as a user starts it: the real `atlas serve`, a real GGUF, real sockets."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests import ggufs
from tests.ledgers import server_environ

KEY = "end-to-end-key-0123456789"
START_TIMEOUT_S = 90.0


class Running:
    """`atlas serve` on a free port, with a data directory and a key of its own."""

    def __init__(self, home: Path, model: str, **environ: str) -> None:
        self.home = home
        self.stderr = home.with_suffix(".stderr")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ATLAS_")}
        command = [sys.executable, "-m", "atlas", "serve", "--model", model, "--port", "0", "--data-dir", str(home)]
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**kept, "ATLAS_API_KEY": KEY, "ATLAS_ENGINE_THREADS": "1", **server_environ(home), **environ},
            )
        self.url = self._wait_ready()

    @property
    def serving_pid(self) -> int:
        """The child that holds the model."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        [child] = [child for child in children if "python" in Path(f"/proc/{child}/comm").read_text()]  # the other is Valkey
        return int(child)

    def post(self, path: str, body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"authorization": f"Bearer {KEY}"}, timeout=60)

    def metric(self, name: str, **labels: str) -> float:
        """Sum over the samples of this name that carry these labels."""
        samples = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", self._metrics(), re.MULTILINE)
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(value) for found, value in samples if all(pair in found for pair in wanted))

    def _metrics(self) -> str:
        return self.get("/metrics").text

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(15)
        finally:
            self.process.kill()
            if self.process.stdout:
                self.process.stdout.close()

    def _wait_ready(self) -> str:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], START_TIMEOUT_S)
        line = self.process.stdout.readline() if readable else ""
        match = re.fullmatch(r"ATLAS ready on (http://\S+:\d+)\n", line)
        assert match, f"{line!r}: {self.stderr.read_text()}"
        return match[1]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Starts servers that live until the session ends."""
    servers: list[Running] = []

    def start(model: Path | str, **environ: str) -> Running:
        home = tmp_path_factory.mktemp("e2e") / "home"
        servers.append(Running(home, str(model), **environ))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def scripted(serve: Callable[..., Running]) -> Running:
    """A model that says a known thing, on the real engine."""
    return serve(ggufs.tiny_scripted())


@pytest.fixture(scope="session")
def tool_loop(serve: Callable[..., Running]) -> Running:
    """A model that calls `add` once and then reports the result."""
    return serve(ggufs.tiny_tool_loop())


@pytest.fixture(scope="session")
def nano(serve: Callable[..., Running]) -> Running:
    """The bundled model."""
    return serve("nano")
