"""Results of another thread reach whoever waits for them, each once, cancelled or not."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from atlas.errors import LedgerUnavailable
from atlas.gateway.arrivals import Arrivals
from atlas.store import Written


async def test_results_and_errors_arrive() -> None:
    arrivals = Arrivals()
    good: Written[None] = Written()
    bad: Written[None] = Written()
    seen: list[BaseException | None] = []
    waiting = [arrivals.expect(good, seen.append), arrivals.expect(bad, seen.append)]
    error = LedgerUnavailable("away")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(good.set_result, None)
        thread.submit(bad.set_exception, error)
    await waiting[0]
    with pytest.raises(LedgerUnavailable):
        await waiting[1]
    assert seen == [None, error]


async def test_what_is_done_already_arrives_too() -> None:
    done: Written[None] = Written()
    done.set_result(None)
    await Arrivals().expect(done)


async def test_nothing_is_lost_between_threads() -> None:
    arrivals = Arrivals()
    futures: list[Written[None]] = [Written() for _ in range(3000)]
    seen: list[BaseException | None] = []
    waiting = [arrivals.expect(future, seen.append) for future in futures]

    def finish(part: int) -> None:
        for future in futures[part::3]:
            future.set_result(None)

    with ThreadPoolExecutor(3) as threads:
        for part in range(3):
            threads.submit(finish, part)
        await asyncio.wait_for(asyncio.gather(*waiting), 30)
    assert len(seen) == 3000


async def test_who_is_cancelled_does_not_stop_the_work() -> None:
    arrivals = Arrivals()
    future: Written[None] = Written()
    seen: list[BaseException | None] = []
    waiting = arrivals.expect(future, seen.append)
    waiting.cancel()
    future.set_exception(LedgerUnavailable("away"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [type(error) for error in seen] == [LedgerUnavailable]
