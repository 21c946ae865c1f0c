"""The servers that are compared, and how the peer is had: llama-server from the same sources as the binding that ATLAS uses."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx
import llama_cpp

from atlas.engine.hardware import has_unsafe_amx
from benchmarks.sdists import CACHE, unpacked

LLAMA_CPP_PYTHON = "0.3.36"  # as in pyproject.toml
KEY = "benchmark-key-benchmark-key"
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Peer:
    """A running server with an OpenAI-compatible API."""

    name: str
    url: str
    pid: int

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {KEY}"}

    @cached_property
    def model(self) -> str:
        """Id of the model it serves."""
        return str(httpx.get(f"{self.url}/v1/models", headers=self.headers).json()["data"][0]["id"])


def llama_server_binary() -> Path:
    """LLAMA_SERVER, else built once from the vendor tree inside the llama-cpp-python sdist, with the flags of its wheel."""
    if chosen := os.environ.get("LLAMA_SERVER"):
        return Path(chosen)
    binary = CACHE / "build/bin/llama-server"
    if not binary.exists():
        if shutil.which("cmake") is None:
            raise SystemExit("llama-server cannot be built without cmake: install it, or name a llama-server in LLAMA_SERVER")
        print("building llama-server once (several minutes)", file=sys.stderr)
        _build(_sources())
    return binary


def _sources() -> Path:
    return unpacked("llama-cpp-python", LLAMA_CPP_PYTHON) / "vendor/llama.cpp"


def _build(sources: Path) -> None:
    off = [f"-D{name}=OFF" for name in ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES")]
    subprocess.run(["cmake", "-S", str(sources), "-B", str(CACHE / "build"), "-DCMAKE_BUILD_TYPE=Release", *off], check=True)
    subprocess.run(["cmake", "--build", str(CACHE / "build"), "--target", "llama-server", "-j2"], check=True)


@contextmanager
def llama_server(model: Path, *, threads: int, cells: int, slots: int, **environ: str) -> Iterator[Peer]:
    """llama-server with unified KV, so that n shares the prompt's cells as ours does."""
    port = free_port()
    plain = ["--no-repack"] if has_unsafe_amx() else []  # as ours: AMX announced in a virtual machine ends in SIGILL
    command = [
        str(llama_server_binary()), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-np", str(slots),
        "--kv-unified", "-c", str(cells), "-t", str(threads), "-tb", str(threads), "-ub", "512", "-fa", "on",
        "--api-key", KEY, "--log-disable", *plain,
    ]  # fmt: skip
    whole = {**os.environ, **environ}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=whole) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(lambda: httpx.get(f"{url}/health", timeout=2).status_code == 200, process)
            yield Peer("llama-server", url, process.pid)
        finally:
            process.kill()


# As llama-cpp-python[server] has it.
EXAMPLE_SERVER_NEEDS = ("uvicorn", "fastapi", "pydantic-settings", "sse-starlette", "starlette-context<0.4", "PyYAML")


@contextmanager
def example_server(model: Path, *, threads: int, cells: int) -> Iterator[Peer]:
    """The server that comes with llama-cpp-python: the same binding as ours, one request at a time."""
    port, home = free_port(), CACHE / "example-server"
    if not (home / "bin/uvicorn").exists():
        print("installing what llama-cpp-python's server needs, once", file=sys.stderr)
        venv.create(home, with_pip=True)
        subprocess.run([home / "bin/pip", "install", "-q", *EXAMPLE_SERVER_NEEDS], check=True)
    options = {
        "model": model, "model_alias": "model", "host": "127.0.0.1", "port": port, "api_key": KEY, "n_ctx": cells,
        "n_threads": threads, "n_threads_batch": threads, "flash_attn": "true", "interrupt_requests": "false", "verbose": "false",
    }  # fmt: skip
    command = [str(home / "bin/python"), "-m", "llama_cpp.server", *(f"--{name}={value}" for name, value in options.items())]
    environ = {**os.environ, "PYTHONPATH": str(Path(llama_cpp.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(lambda: httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200, process)
            yield Peer("example server", url, process.pid)
        finally:
            process.kill()


@contextmanager
def atlas(model: Path, home: Path, *, threads: int, cells: int, **environ: str) -> Iterator[Peer]:
    """`atlas serve`, as a user starts it."""
    settings = {"ATLAS_API_KEY": KEY, "ATLAS_ENGINE_THREADS": str(threads), "ATLAS_ENGINE_CONTEXT_TOKENS": str(cells)}
    settings |= {"ATLAS_ENGINE_FLASH_ATTENTION": "on", **environ}  # as the peer's; by itself ATLAS leaves it off on a CPU
    command = [sys.executable, "-m", "atlas", "serve", "--model", str(model), "--port", "0", "--data-dir", str(home)]
    stderr = (home.parent / f"{home.name}.stderr").open("wb")
    with (
        stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **settings}) as process,
    ):
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
            line = process.stdout.readline() if readable else ""
            if "http://" not in line:
                raise SystemExit(f"atlas serve did not start: {Path(stderr.name).read_text()}")
            yield Peer("atlas", line[line.index("http://") :].strip(), process.pid)
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(is_ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    start_s = time.monotonic()
    while time.monotonic() - start_s < START_TIMEOUT_S and process.poll() is None:
        try:
            if is_ready():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{process.args!r} did not start")
