from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.ledgers import server_environ

START_TIMEOUT_S = 90.0  # a busy machine of two processors takes 30


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell that starts tests in the background has them ignore SIGINT; a program that is begun so never hears of one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(condition: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> float:
    """Seconds until the condition held."""
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < timeout_s, "timed out"
        time.sleep(0.02)
    return time.monotonic() - start_s


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def arguments_of(pid: int) -> list[bytes]:
    """Of its command line; none of a process that has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def clean_environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ATLAS_", "SCRIPTED_"))}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), **extra}


class RunningServer:
    """A real `atlas serve`: parent and serving process, with a scripted engine."""

    def __init__(self, data_dir: Path, *settings: str, stdin: int = subprocess.DEVNULL, **environ: str) -> None:
        self.data_dir = data_dir
        self.environ = server_environ(data_dir) | environ
        self.stderr = data_dir.with_suffix(".stderr")
        stand_in = data_dir.with_suffix(".gguf")
        stand_in.write_bytes(b"GGUF")  # chosen by the parent as any file is; the scripted engine does not read it
        script = str(Path(__file__).with_name("scripted_serve.py"))
        quick = ["server.port=0", "tasks.workers=0"]  # nothing is solved in most of these tests
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, script, f"data_dir={data_dir}", *quick, f"engine.model={stand_in}", *settings],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=clean_environment(**self.environ),
            )

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], START_TIMEOUT_S)
        self.ready_line = self.process.stdout.readline() if readable else ""
        match = re.fullmatch(r"ATLAS ready on (https?://\S+:\d+)\n", self.ready_line)
        assert match, f"{self.ready_line!r}: {self.stderr.read_text()}"
        self.url = match[1]
        found = re.search(r"sk-llm-\w+", self.stderr.read_text())
        self.key = found[0] if found else ""

    @property
    def ledger_url(self) -> str:
        """Empty: in the data directory."""
        return self.environ.get("ATLAS_LEDGER_URL", "")

    @property
    def child(self) -> int:
        [pid] = [child for child in children(self.process.pid) if "python" in Path(f"/proc/{child}/comm").read_text()]
        return pid

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    def chat(self, **extra: object) -> httpx.Response:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], **extra}
        return httpx.post(
            f"{self.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {self.key}"}, timeout=60
        )

    def cli(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return run_cli(*arguments, **{"ATLAS_HOME": str(self.data_dir), **self.environ, **environ})

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)
        if self.process.stdout:
            self.process.stdout.close()


def run_cli(*arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atlas", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=60,
        check=False,
        env=clean_environment(**environ),
    )


@pytest.fixture
def launch_server(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    servers: list[RunningServer] = []

    def start(
        *settings: str, data_dir: Path = tmp_path / "data", stdin: int = subprocess.DEVNULL, **environ: str
    ) -> RunningServer:
        servers.append(RunningServer(data_dir, *settings, stdin=stdin, **environ))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(launch_server: Callable[..., RunningServer]) -> RunningServer:
    started = launch_server()
    started.wait_ready()
    return started
