"""32 clients with random cancels, long prompts and n up to 20 on the real engine."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest

from tests import ggufs
from tests.e2e import soak
from tests.e2e.conftest import Running


def wait_idle(server: Running, timeout_s: float = 20.0) -> None:
    stop_at = time.monotonic() + timeout_s
    while server.metric("atlas_kv_cells", state="live") or server.metric("atlas_requests_running"):
        assert time.monotonic() < stop_at, "cells are still held"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def calm(serve: Callable[..., Running]) -> Running:
    return serve(ggufs.tiny_calm(), ATLAS_ENGINE_CONTEXT_TOKENS="32768")


async def test_thirty_two_clients_for_some_seconds(calm: Running) -> None:
    references = await soak.solo_runs(calm, soak.prompts(random.Random(1), 12))
    tally = await soak.run(calm, references, seconds=8)
    print(tally.seen)
    assert tally.wrong == []
    assert tally.mismatch_share <= 0.01
    assert tally.seen["greedy"] > 50
    await asyncio.to_thread(wait_idle, calm)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_thirty_two_clients_for_two_minutes(calm: Running) -> None:
    """Also: memory at the end within 5 % of that at 30 seconds."""
    references = await soak.solo_runs(calm, soak.prompts(random.Random(2), 40))
    running = asyncio.create_task(soak.run(calm, references, seconds=120, seed=7))
    await asyncio.sleep(30)
    early_bytes = soak.resident_bytes(calm.serving_pid)
    tally = await running
    late_bytes = soak.resident_bytes(calm.serving_pid)
    print(tally.seen, f"{early_bytes / 1e6:.0f} MB at 30 s, {late_bytes / 1e6:.0f} MB at 120 s")
    assert tally.wrong == []
    assert tally.mismatch_share <= 0.01
    await asyncio.to_thread(wait_idle, calm)
    assert late_bytes <= early_bytes * 1.05
