"""A closed-loop load generator on plain sockets, and the CPU time and memory of a process with all its descendants."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Target(NamedTuple):
    """Where requests go; `pid` is the root of the processes that are charged for them."""

    name: str
    port: int
    pid: int
    key: str


class Load(NamedTuple):
    """What one load cost."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # per request, all processes of the target


def request_bytes(target: Target, *, stream: bool, model: str = "mock") -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "hi " * 50}], "stream": stream, "max_tokens": 64}
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {target.key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def run(target: Target, *, num_requests: int, concurrency: int, stream: bool) -> Load:
    """`num_requests` after a warm-up of a tenth."""
    return asyncio.run(_run(target, num_requests, concurrency, stream))


async def _run(target: Target, num_requests: int, concurrency: int, stream: bool) -> Load:
    request = request_bytes(target, stream=stream)
    each = num_requests // concurrency
    await asyncio.gather(*(_client(target, request, max(3, each // 10)) for _ in range(concurrency)))
    cpu_before_s, start_s = cpu_s(target.pid), time.perf_counter()
    walls = await asyncio.gather(*(_client(target, request, each) for _ in range(concurrency)))
    wall_s, used_s = time.perf_counter() - start_s, cpu_s(target.pid) - cpu_before_s
    latencies = sorted(latency for client in walls for latency in client)
    p99 = latencies[int(len(latencies) * 0.99)]
    return Load(
        requests_per_s=len(latencies) / wall_s,
        p50_ms=statistics.median(latencies) * 1e3,
        p99_ms=p99 * 1e3,
        cpu_us=used_s / len(latencies) * 1e6,
    )


async def _client(target: Target, request: bytes, count: int) -> list[float]:
    """Seconds of each of `count` requests on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    latencies = []
    for _ in range(count):
        start_s = time.perf_counter()
        writer.write(request)
        try:
            await read_answer(reader)
        except asyncio.IncompleteReadError as error:
            raise SystemExit(f"{target.name} closed a connection in mid-answer after {error.partial[-200:]!r}") from None
        latencies.append(time.perf_counter() - start_s)
    writer.close()
    return latencies


async def read_answer(reader: asyncio.StreamReader) -> None:
    """One whole answer. Anything but 200 ends the benchmark: a refusal is cheap and would flatter."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head[:20]:
        raise SystemExit(f"refused: {head.decode()} {(await reader.read(500)).decode()}")
    if b"content-length:" in head:
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        return
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
    await reader.readexactly(2)


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    pids = [pid]
    for parent in pids:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            pids += [int(child) for child in children.read_text().split()]
    return pids


def cpu_s(pid: int) -> float:
    """User and system time of the tree so far."""
    fields = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in tree(pid)]
    return sum(int(values[11]) + int(values[12]) for values in fields) / TICKS_PER_S


def rss_bytes(pid: int) -> int:
    """Resident memory of the tree; pages shared between its processes count once for each."""
    return sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in tree(pid)) * PAGE_BYTES
