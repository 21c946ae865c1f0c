"""Inter-token latency of eight streams, idle and with one Python thread in the server kept busy.

A Python server shares one interpreter lock between the engine's thread, the event loop and whatever else runs. The engine is
built to give the lock away seldom; this shows what a thread that never gives it away willingly costs. The server under test is
the real gateway and engine over HTTP, with a busy thread that a signal switches on and off; rounds alternate.

    python -m benchmarks.contention [--rounds 5] [--threads 1] [--tokens 80]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import uvicorn

from atlas.directory import DataDirectory
from atlas.engine import load_engine
from atlas.gateway import GatewayDeps, ModelInfo, Readiness, create_app
from atlas.settings import AuthSettings, EngineSettings
from atlas.store import open_store
from benchmarks import models
from benchmarks.engine import CELLS
from benchmarks.peers import free_port
from benchmarks.report import write

STREAMS = 8
SWITCH_INTERVAL_S = 1e-4  # as in atlas.app


class OneModel:
    """A catalogue of the model under test."""

    def loaded_id(self) -> str:
        return "model"

    def ids(self) -> Sequence[str]:
        return ["model"]

    def info(self, model_id: str) -> ModelInfo:
        return ModelInfo(id=model_id)


class Busy:
    """A thread that computes in Python while switched on."""

    def __init__(self) -> None:
        self._is_on = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def set(self, *, on: bool) -> None:
        self._is_on.set() if on else self._is_on.clear()

    def _run(self) -> None:
        total = 0
        while self._is_on.wait():
            for number in range(10_000):
                total += number


async def serve(path: str, port: int, threads: int) -> None:
    """The child: gateway and engine, busy thread on SIGUSR1, off on SIGUSR2."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    settings = EngineSettings(threads=threads, context_tokens=CELLS)
    engine = await load_engine(Path(path), model_id="model", settings=settings)
    busy = Busy()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: busy.set(on=True))
    loop.add_signal_handler(signal.SIGUSR2, lambda: busy.set(on=False))
    with tempfile.TemporaryDirectory() as folder:
        directory = DataDirectory(Path(folder) / "home").create()
        directory.hold()
        deps = GatewayDeps(
            engine=lambda: engine,
            models=OneModel(),
            store=open_store(directory),
            readiness=lambda: Readiness(status="ready"),
            auth=AuthSettings(mode="off"),
        )
        await uvicorn.Server(uvicorn.Config(create_app(deps), port=port, log_config=None, access_log=False)).serve()


async def gaps_ms(url: str, *, max_tokens: int) -> list[float]:
    """Milliseconds between the chunks of each of eight streams."""
    async with httpx.AsyncClient(timeout=300) as client:
        streams = [_stream(client, url, number, max_tokens) for number in range(STREAMS)]
        return [gap for gaps in await asyncio.gather(*streams) for gap in gaps]


async def _stream(client: httpx.AsyncClient, url: str, number: int, max_tokens: int) -> list[float]:
    body = {
        "model": "model",
        "prompt": f"{number}" * 64,
        "max_tokens": max_tokens,
        "stream": True,
        "temperature": 0.8,
        "top_k": 20,
    }
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        seen = [time.perf_counter() async for line in response.aiter_lines() if line.startswith("data: {")]
    return [(later - sooner) * 1e3 for sooner, later in itertools.pairwise(seen)]


def measure(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.contention", "--serve", str(path), str(port), str(arguments.threads)]
    results: dict[int, list[float]] = {signal.SIGUSR1: [], signal.SIGUSR2: []}
    with subprocess.Popen(command) as server:
        try:
            _wait_live(port)
            asyncio.run(gaps_ms(f"http://127.0.0.1:{port}", max_tokens=8))  # warm-up
            for _ in range(arguments.rounds):
                for switch, gaps in results.items():
                    os.kill(server.pid, switch)
                    time.sleep(0.1)
                    gaps += asyncio.run(gaps_ms(f"http://127.0.0.1:{port}", max_tokens=arguments.tokens))
        finally:
            server.kill()
    idle, busy = results[signal.SIGUSR2], results[signal.SIGUSR1]
    return {
        "idle_p50_ms": statistics.median(idle),
        "busy_p50_ms": statistics.median(busy),
        "idle_p95_ms": statistics.quantiles(idle, n=20)[-1],
        "busy_p95_ms": statistics.quantiles(busy, n=20)[-1],
        "ratio_p50": statistics.median(busy) / statistics.median(idle),
        "ratio_mean": statistics.mean(busy) / statistics.mean(idle),
    }


def _wait_live(port: int) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 5), ("threads", 1), ("tokens", 80)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    report: dict[str, object] = {"arguments": vars(arguments), "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        made = {make.__name__: make(Path(folder)) for make in (models.vocabulary, models.compute)}
        found = {name: measure(path, arguments) for name, path in made.items()}
    for name, row in found.items():
        print(f"{name:>10}  " + "  ".join(f"{key} {value:.2f}" for key, value in row.items()))
    write("contention", {**report, "models": found})


if __name__ == "__main__":
    main()
