"""Steady load on a server while something breaks, and what its ledger must then say about every request a client saw."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from atlas.directory import DataDirectory
from atlas.settings import LedgerSettings
from atlas.store import open_store
from atlas.types import Usage

RATE_PER_S = 50
PROMPT: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 64}


class Seen(NamedTuple):
    """One request as its client saw it.

    Attributes:
        status: 0 if the connection broke before an answer began.
        request_id: empty if no answer began.
        received_tokens: chunks of text that arrived; of a whole answer, what its usage says.
        told: (prompt, completion) tokens of the answer's usage; None if it was cut.
    """

    status: int
    request_id: str = ""
    received_tokens: int = 0
    told: tuple[int, int] | None = None
    has_retry_after: bool = False


async def load(url: str, key: str, *, duration_s: float, at: float, fault: Callable[[], None]) -> list[Seen]:
    """`RATE_PER_S` requests a second, every second one a stream; `fault` strikes `at` seconds after the start, in a thread."""
    timeout = aiohttp.ClientTimeout(total=30)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        url, headers={"authorization": f"Bearer {key}"}, timeout=timeout, connector=connector
    ) as client:
        striking = asyncio.create_task(_strike(at, fault))
        start_s, tasks = time.monotonic(), []
        for number in range(round(duration_s * RATE_PER_S)):
            await asyncio.sleep(max(0.0, start_s + number / RATE_PER_S - time.monotonic()))
            tasks.append(asyncio.create_task(_one(client, is_streamed=bool(number % 2))))
        seen = await asyncio.gather(*tasks)
        await striking
    return seen


async def _strike(at: float, fault: Callable[[], None]) -> None:
    await asyncio.sleep(at)
    await asyncio.to_thread(fault)


async def _one(client: aiohttp.ClientSession, *, is_streamed: bool) -> Seen:
    status, request_id, retry, chunks = 0, "", False, 0
    body = PROMPT | ({"stream": True, "stream_options": {"include_usage": True}} if is_streamed else {})
    try:
        async with client.post("/v1/chat/completions", json=body) as answer:
            status, request_id = answer.status, answer.headers.get("x-request-id", "")
            retry = "retry-after" in answer.headers
            if status != 200:
                return Seen(status, request_id, has_retry_after=retry)
            if not is_streamed:
                return Seen(200, request_id, *_told((await answer.json())["usage"]))
            async for line in answer.content:
                event = json.loads(line[6:]) if line.startswith(b"data: {") else {}
                chunks += sum(bool(choice["delta"].get("content")) for choice in event.get("choices", ()))
                if event.get("usage"):
                    return Seen(200, request_id, *_told(event["usage"]))
    except (aiohttp.ClientError, TimeoutError):
        pass  # the server is gone; what had arrived until then counts
    return Seen(status, request_id, chunks)


def _told(usage: dict[str, int]) -> tuple[int, tuple[int, int]]:
    return usage["completion_tokens"], (usage["prompt_tokens"], usage["completion_tokens"])


def ledger_rows(data_dir: Path, ledger_url: str = "") -> dict[str, Usage]:
    """Every usage row by id, after the server has stopped. What it left open is settled first, as its next start would."""
    directory = DataDirectory(data_dir)
    directory.hold()
    store = open_store(directory, settings=LedgerSettings(url=ledger_url))
    try:
        store.usage.interrupt_open()
        rows = list(store.usage.events(since=0.0, until=time.time() + 60))
        assert len({row.request_id for row in rows}) == len(rows)
        sums = store.usage.totals(since=0.0, until=time.time() + 60, group="model")
        charged = sum(row.prompt_tokens + row.completion_tokens for row in rows)
        assert sum(total.prompt_tokens + total.completion_tokens for total in sums) == charged
        return {row.request_id: row for row in rows}
    finally:
        store.close()
        directory.release()


def broken_promises(seen: list[Seen], rows: dict[str, Usage], *, reserved_tokens: int) -> list[str]:
    """Where the ledger and what clients saw differ.

    An answer that was completed stands there once, with the usage it was told. One that was cut stands there once, charged at
    least what arrived and at most what was reserved. A refusal says when to come again; it has no row, or, if the ledger failed
    after it had been admitted, one that says so.
    """
    return [
        f"{one} but {rows.get(one.request_id)}" for one in seen if not _is_kept(one, rows.get(one.request_id), reserved_tokens)
    ]


def _is_kept(one: Seen, row: Usage | None, reserved_tokens: int) -> bool:
    if one.told is not None:
        return row is not None and row.state == "completed" and (row.prompt_tokens, row.completion_tokens) == one.told
    if one.status == 200:
        return row is not None and one.received_tokens <= row.completion_tokens <= reserved_tokens
    if one.status in (429, 503):
        return one.has_retry_after and (row is None or (one.status == 503 and row.state in ("failed", "interrupted")))
    return one.status == 0  # nobody was told anything
