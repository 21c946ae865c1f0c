"""What a gateway costs: ATLAS and the LiteLLM proxy before the same mock upstream, in one run.

ATLAS runs as shipped, with keys, limits, budgets and usage on and `engine/remote.py` before the upstream; its CPU time counts the
parent, the serving process and Valkey. "scripted" is ATLAS with an engine inside and no upstream. LiteLLM runs as its
documentation says, with a key, without database. Rounds alternate between the systems; figures are medians over rounds.

    python -m benchmarks.gateway [--rounds 3] [--json 3200] [--streams 640] [--idle 1000]

LITELLM names the `litellm` program to run; else it is installed once, pinned, into a virtual environment of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import Load, Target, request_bytes, rss_bytes, run
from benchmarks.mock_upstream import NUM_CHUNKS
from benchmarks.peers import KEY, START_TIMEOUT_S, free_port
from benchmarks.report import write
from benchmarks.sdists import CACHE

LITELLM_VERSION = "1.106.2"
CONCURRENCY = 32  # as many clients as engine.max_sequences lets in at once
MANY = 10**12
LIMITS = f"""
[limits]
requests_per_minute = {MANY}
tokens_per_minute = {MANY}
concurrency = {MANY}
tokens_per_day = {MANY}
tokens_per_month = {MANY}
prices = {{ mock = {{ prompt = 1.0, completion = 2.0 }} }}

[queue]
max_running = 4096
max_waiting = 4096
"""
LITELLM_CONFIG = """
model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, api_base: "http://127.0.0.1:{port}/v1", api_key: none}}
general_settings: {{master_key: "{key}"}}
"""


def on_core(core: int, command: Sequence[str]) -> list[str]:
    """The servers under test share one core, mock and load have the other: neither steals from what is measured."""
    return ["taskset", "-c", str(core), *command] if (os.cpu_count() or 1) > 1 else list(command)


@contextmanager
def running(command: Sequence[str], **environ: str) -> Iterator[subprocess.Popen[str]]:
    quiet = subprocess.DEVNULL if not os.environ.get("VERBOSE") else None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, text=True, env={**os.environ, **environ}) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def mock_upstream() -> Iterator[Target]:
    port = free_port()
    with running(on_core(0, [sys.executable, "-m", "benchmarks.mock_upstream", str(port)])) as process:
        wait_until_up(f"http://127.0.0.1:{port}/v1/models", process)
        yield Target("mock", port, process.pid, "none")


@contextmanager
def atlas(name: str, folder: Path, command: Sequence[str], **environ: str) -> Iterator[Target]:
    config = folder / f"{name}.toml"
    config.write_text(LIMITS)
    options = ["--port", "0", "--config", str(config), "--data-dir", str(folder / name)]
    with running(on_core(1, [*command, *options]), ATLAS_API_KEY=KEY, ATLAS_LOG_LEVEL="warning", **environ) as process:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
        line = process.stdout.readline() if readable else ""
        if "http://" not in line:
            raise SystemExit("atlas serve did not start; VERBOSE=1 shows why")
        yield Target(name, int(line.rpartition(":")[2]), process.pid, KEY)


@contextmanager
def litellm(folder: Path, upstream: Target) -> Iterator[Target]:
    port, config = free_port(), folder / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(port=upstream.port, key=KEY))
    command = [litellm_program(), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"}
    with running(on_core(1, command), **quiet) as process:
        wait_until_up(f"http://127.0.0.1:{port}/health/liveliness", process)
        yield Target("litellm", port, process.pid, KEY)


def litellm_program() -> str:
    if chosen := os.environ.get("LITELLM"):
        return chosen
    home = CACHE / f"litellm-{LITELLM_VERSION}"
    if not (home / "bin/litellm").exists():
        print(f"installing litellm[proxy]=={LITELLM_VERSION} once", file=sys.stderr)
        venv.create(home, with_pip=True)
        subprocess.run([home / "bin/pip", "install", "-q", f"litellm[proxy]=={LITELLM_VERSION}"], check=True)
    return str(home / "bin/litellm")


def wait_until_up(url: str, process: subprocess.Popen[str]) -> None:
    start_s = time.monotonic()
    while time.monotonic() - start_s < START_TIMEOUT_S and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"{url} did not come up; VERBOSE=1 shows why")


def compare(targets: Sequence[Target], *, rounds: int, num_requests: int, stream: bool) -> dict[str, Load]:
    """Medians over rounds; the order of the targets turns with each round. LiteLLM gets a quarter of the requests."""
    loads: dict[str, list[Load]] = {target.name: [] for target in targets}
    for number in range(rounds):
        for target in targets if number % 2 else targets[::-1]:
            count = num_requests // 4 if target.name == "litellm" else num_requests
            loads[target.name].append(run(target, num_requests=count, concurrency=CONCURRENCY, stream=stream))
    return {name: Load(*map(statistics.median, zip(*each, strict=True))) for name, each in loads.items()}


def settled_bytes(target: Target) -> float:
    """Memory once it has stayed the same for three seconds: sandbox and workers begin after the server is ready."""
    seen = [0]
    while len(seen) < 4 or max(seen[-4:]) - min(seen[-4:]) > 1e6:
        time.sleep(1)
        seen.append(rss_bytes(target.pid))
    return seen[-1]


async def hold_idle(target: Target, count: int) -> float:
    """Bytes of memory that `count` open streams take, each of which has had its first event."""
    before = settled_bytes(target)
    request = request_bytes(target, stream=True, model="idle")
    writers = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:20]:
            raise SystemExit(f"refused: {head.decode()}")
        await reader.readuntil(b"data: ")
        writers.append(writer)
    grown = rss_bytes(target.pid) - before
    for writer in writers:
        writer.close()
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 3), ("json", 3200), ("streams", 640), ("idle", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {0})
    report: dict[str, Any] = {"arguments": vars(arguments), "litellm": LITELLM_VERSION}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        upstream = stack.enter_context(mock_upstream())
        remote = {"ATLAS_REMOTE_URL": f"http://127.0.0.1:{upstream.port}/v1", "ATLAS_REMOTE_MODEL": "mock"}
        serve = [sys.executable, "-m", "atlas", "serve"]
        ours = stack.enter_context(atlas("atlas", folder, serve, **remote))
        scripted = stack.enter_context(atlas("scripted", folder, [sys.executable, "-m", "benchmarks.scripted"]))
        theirs = stack.enter_context(litellm(folder, upstream))
        targets = [ours, scripted, theirs]
        for kind, count, is_stream in (("json", arguments.json, False), ("stream", arguments.streams, True)):
            loads = compare(targets, rounds=arguments.rounds, num_requests=count, stream=is_stream)
            report[kind] = {name: load._asdict() for name, load in loads.items()}
            show(kind, loads)
        report["memory_mb"] = {target.name: rss_bytes(target.pid) / 1e6 for target in targets}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        upstream = stack.enter_context(mock_upstream())
        remote = {"ATLAS_REMOTE_URL": f"http://127.0.0.1:{upstream.port}/v1", "ATLAS_REMOTE_MODEL": "idle"}
        ours = stack.enter_context(atlas("atlas", Path(name), serve, **remote))
        report["idle_mb"] = asyncio.run(hold_idle(ours, arguments.idle)) / 1e6
    print(f"memory {report['memory_mb']}; {arguments.idle} idle streams: {report['idle_mb']:.0f} MB more")
    write("gateway", report)


def show(kind: str, loads: dict[str, Load]) -> None:
    for name, load in loads.items():
        chunk = f"  {load.cpu_us / NUM_CHUNKS:6.1f} us/chunk" if kind == "stream" else ""
        times = f"p50 {load.p50_ms:.2f} ms  p99 {load.p99_ms:.2f} ms  CPU {load.cpu_us:.0f} us/request"
        print(f"{kind:>7} {name:>9}  {load.requests_per_s:7.0f} req/s  {times}{chunk}")
    print(f"{kind:>7} litellm / atlas: {loads['litellm'].cpu_us / loads['atlas'].cpu_us:.1f} times the CPU")


if __name__ == "__main__":
    main()
