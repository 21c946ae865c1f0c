"""What of an engine's step is Python, and what a busy house does to the gaps between tokens. For `benchmarks.engine`."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from benchmarks.peers import Peer
from benchmarks.streams import SAMPLING, streamed

ROWS = 20
CLIENTS = 32
GAP_STREAMS = 8
FILES, FILE_BYTES = 2000, 20_000
COUNTERS = re.compile(r"^atlas_engine_(steps|step_seconds|decode_seconds)_total\S* (\S+)$", re.MULTILINE)


async def python_per_step(peer: Peer, run: int, *, tokens: int) -> dict[str, float]:
    """Milliseconds of a step that are not llama.cpp's, the event loop's hold on the interpreter included.

    Of a server that runs 20 sequences at a time: one request with n=20, answered whole, and 32 streams, of which 20 run.
    """
    body = {"model": peer.model, "prompt": f"{run:04d} whole", "n": ROWS, "max_tokens": tokens, "seed": run, **SAMPLING}
    async with httpx.AsyncClient(base_url=peer.url, headers=peer.headers, timeout=600) as client:
        before = await _counters(client)
        (await client.post("/v1/completions", json=body)).raise_for_status()
        between = await _counters(client)
        await asyncio.gather(*(streamed(peer, f"{run:04d} {at}", max_tokens=tokens, **SAMPLING) for at in range(CLIENTS)))
        return {"idle_ms": _python_ms(before, between), "streaming_ms": _python_ms(between, await _counters(client))}


async def gaps_in_a_busy_house(peer: Peer, run: int, *, tokens: int, folder: Path) -> dict[str, float]:
    """99th percentile of the gaps between tokens of 8 streams: alone, and beside a followed dashboard and a child that hashes.

    The child has the lowest priority, as whatever ATLAS does beside answering. The server has `auth.mode = "off"`.
    """
    idle = await _gaps(peer, run, tokens)
    async with _followed_dashboard(peer), _hashing(folder):
        busy = await _gaps(peer, run + 1, tokens)
    p99 = [sorted(gaps)[int(0.99 * len(gaps))] * 1e3 for gaps in (idle, busy)]
    return {"idle_p99_ms": p99[0], "busy_p99_ms": p99[1], "ratio": p99[1] / p99[0]}


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def make_files(folder: Path) -> Path:
    """What is to be hashed."""
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number}.py").write_bytes(os.urandom(FILE_BYTES))
    return folder


async def _counters(client: httpx.AsyncClient) -> dict[str, float]:
    found = COUNTERS.findall((await client.get("/metrics")).raise_for_status().text)
    if len(found) != 3:
        raise SystemExit(f"/metrics has {found} of the engine's steps")
    return {name: float(value) for name, value in found}


def _python_ms(before: dict[str, float], after: dict[str, float]) -> float:
    grown = {name: value - before[name] for name, value in after.items()}
    return 1e3 * (grown["step_seconds"] - grown["decode_seconds"]) / grown["steps"]


async def _gaps(peer: Peer, run: int, tokens: int) -> list[float]:
    asked = (streamed(peer, f"{run:04d} {at} gaps", max_tokens=tokens, temperature=0) for at in range(GAP_STREAMS))
    streams = await asyncio.gather(*asked)
    first = max(stream.pieces_s[0] for stream in streams)  # from here on all of them decode
    return [
        later - earlier
        for stream in streams
        for earlier, later in zip(stream.pieces_s, stream.pieces_s[1:], strict=False)
        if earlier >= first
    ]


@asynccontextmanager
async def _followed_dashboard(peer: Peer) -> AsyncIterator[None]:
    async with (
        httpx.AsyncClient(base_url=peer.url, timeout=60) as client,
        client.stream("GET", "/dash/events", params={"page": "overview"}) as answer,
    ):
        answer.raise_for_status()
        lines = answer.aiter_lines()
        await anext(lines)
        reading = asyncio.create_task(_drain(lines))
        try:
            yield
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _drain(lines: AsyncIterator[str]) -> None:
    async for _ in lines:
        pass


@asynccontextmanager
async def _hashing(folder: Path) -> AsyncIterator[None]:
    """A child that goes through the files again and again."""
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.steps", str(folder))
    try:
        yield
        if child.returncode is not None:
            raise SystemExit("the child that hashes ended too soon")
    finally:
        child.kill()
        await child.wait()


def hash_files(folder: Path) -> None:
    os.nice(19)
    while True:
        for path in folder.iterdir():
            hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    hash_files(Path(sys.argv[1]))
