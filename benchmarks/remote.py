"""CPU time the remote engine takes per request and per chunk, in front of an upstream that only sends prepared bytes.

Three loads: "whole" answers as one JSON object, "burst" sends the chunks of a stream at once, "paced" one every 5 ms, as a model
does (most chunks then arrive alone and wake the event loop). Kernel time counts; the upstream is another process.

    python -m benchmarks.remote [--requests 600] [--concurrency 32]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from typing import Any

import uvloop

from atlas.engine import RemoteEngine
from atlas.types import Message, Prompt
from benchmarks.mock_upstream import CHUNK, END, HEAD, NUM_CHUNKS, Upstream
from benchmarks.peers import free_port
from benchmarks.report import write

PACE_S = 0.005
START_TIMEOUT_S = 10.0


class Paced(Upstream):
    """Streams to the model "paced" come chunk by chunk."""

    def _answer(self, request: bytes) -> None:
        if b'"model":"paced"' not in request:
            return super()._answer(request)
        assert self._transport is not None
        self._transport.write(HEAD)
        self._send(NUM_CHUNKS)
        return None

    def _send(self, num_left: int) -> None:
        assert self._transport is not None
        if num_left == 0:
            self._transport.write(END)
        elif not self._transport.is_closing():
            self._transport.write(CHUNK)
            asyncio.get_running_loop().call_later(PACE_S, self._send, num_left - 1)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Paced, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


async def cpu_us(port: int, prompt: Prompt, *, model: str, num_requests: int, concurrency: int) -> float:
    """CPU microseconds per request, after a warm-up of one each."""
    engine = RemoteEngine(f"http://127.0.0.1:{port}/v1", model=model)

    async def ask(count: int) -> None:
        for _ in range(count):
            group = await engine.submit(prompt)
            async for _delta in group:
                pass

    await asyncio.gather(*(ask(1) for _ in range(concurrency)))
    each = num_requests // concurrency
    before_s = time.process_time()
    await asyncio.gather(*(ask(each) for _ in range(concurrency)))
    used_s = time.process_time() - before_s
    await engine.close()
    return used_s / (each * concurrency) * 1e6


async def listening(port: int) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def measure(port: int, arguments: argparse.Namespace) -> dict[str, float]:
    await listening(port)
    load: dict[str, Any] = {"num_requests": arguments.requests, "concurrency": arguments.concurrency}
    streamed = Prompt(messages=(Message(role="user", content="hi " * 50),), max_tokens=NUM_CHUNKS)
    whole = Prompt(messages=streamed.messages, max_tokens=NUM_CHUNKS, whole=True)
    return {
        "whole_us": await cpu_us(port, whole, model="mock", **load),
        "burst_us": await cpu_us(port, streamed, model="mock", **load),
        "paced_us": await cpu_us(port, streamed, model="paced", **load),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("requests", 600), ("concurrency", 32), ("serve", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    if arguments.serve:
        uvloop.run(serve(arguments.serve))
    port = free_port()
    upstream = subprocess.Popen([sys.executable, "-m", "benchmarks.remote", "--serve", str(port)])
    try:
        report = uvloop.run(measure(port, arguments))
    finally:
        upstream.kill()
        upstream.wait()
    for name in ("burst", "paced"):
        report[f"{name}_chunk_us"] = (report[f"{name}_us"] - report["whole_us"]) / NUM_CHUNKS
    for name, value in report.items():
        print(f"{name:16} {value:8.1f}")
    write("remote", {"arguments": vars(arguments), **report})


if __name__ == "__main__":
    main()
