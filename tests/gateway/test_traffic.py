"""What people who watch the server see: open and ended requests, rates, ticks."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.gateway.traffic import MAX_RECENT, MAX_REFUSED, RATES_WINDOW_S, TOKENS_WINDOW_S, Speeds, Traffic, percentile
from atlas.types import Activity, Usage


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Request:
    """One that says of itself what the test wants it to."""

    def __init__(self, request_id: str, *, at: float = 0.0, completion_tokens: int = 0) -> None:
        self.id = request_id
        self.completion_tokens = completion_tokens
        self.usage = Usage(request_id=request_id, at=at, owner="o", key_id="k", route="/v1/x", model="m", state="running")
        self.aborted_by = ""

    def activity(self) -> Activity:
        return Activity(usage=msgspec.structs.replace(self.usage, completion_tokens=self.completion_tokens))

    def abort(self, actor: str) -> None:
        self.aborted_by = actor


def refused(request_id: str, at: float) -> Activity:
    return Activity(usage=Request(request_id, at=at).usage, status=429)


def ids(activities: list[Activity]) -> list[str]:
    return [activity.usage.request_id for activity in activities]


def test_requests_are_open_then_recent_and_the_newest_is_first() -> None:
    traffic = Traffic()
    requests = [Request(f"r{i}", at=i) for i in range(3)]
    for request in requests:
        traffic.begin(request)
    assert ids(traffic.open()) == ["r0", "r1", "r2"]
    requests[1].completion_tokens = 7
    assert traffic.open()[1].usage.completion_tokens == 7
    for request in (*requests[:2], requests[0]):
        traffic.end(request)
    traffic.refuse(refused("no", at=0.5))
    assert ids(traffic.open()) == ["r2"]
    assert ids(traffic.recent()) == ["r1", "no", "r0"]
    assert ids(traffic.recent(1)) == ["r1"]
    assert traffic.find("r2") is not None
    assert traffic.find("r0") is not None
    assert traffic.find("gone") is None


def test_what_is_remembered_is_bounded_and_refused_requests_push_out_none_but_their_like() -> None:
    traffic = Traffic()
    for number in range(MAX_RECENT + 50):
        request = Request(f"r{number}", at=number)
        traffic.begin(request)
        traffic.end(request)
    for number in range(5 * MAX_REFUSED):
        traffic.refuse(refused(f"no{number}", at=number))
    everything = ids(traffic.recent(10_000))
    assert len(everything) == MAX_RECENT + MAX_REFUSED
    assert sum(found.startswith("r") for found in everything) == MAX_RECENT


def test_an_abort_reaches_the_open_request_and_says_so() -> None:
    traffic = Traffic()
    request = Request("r1")
    traffic.begin(request)
    assert traffic.abort("r1", actor="usr_admin")
    assert request.aborted_by == "usr_admin"
    traffic.end(request)
    assert not traffic.abort("r1", actor="usr_admin")


def test_rates_are_of_the_last_minutes_only() -> None:
    clock = Clock()
    traffic = Traffic(clock=clock)
    for ttft_s in (0.1, 0.2, 0.3, 5.0):
        request = Request(f"r{ttft_s}")
        traffic.begin(request)
        traffic.end(request, [Speeds(ttft_s=ttft_s, inter_token_s=ttft_s / 10), Speeds(ttft_s=ttft_s)])
    traffic.measure(lambda: ((1, 2, 3), 4))
    rates = traffic.rates()
    assert (rates.requests_per_minute, rates.waiting, rates.running) == (4, (1, 2, 3), 4)
    assert (rates.ttft_p50_s, rates.ttft_p95_s) == (0.2, 5.0)
    assert rates.inter_token_p50_s == pytest.approx(0.02)
    assert rates.inter_token_p95_s == 0.5
    clock.now_s += 60
    assert traffic.rates().requests_per_minute == 0
    assert traffic.rates().ttft_p50_s == 0.2
    clock.now_s += RATES_WINDOW_S
    assert traffic.rates().ttft_p50_s is None


def test_tokens_per_second_count_running_requests_too() -> None:
    clock = Clock()
    traffic = Traffic(clock=clock)
    request = Request("r")
    traffic.begin(request)
    clock.now_s += 10
    request.completion_tokens = 50
    assert traffic.rates().tokens_per_s == 5.0
    traffic.sample()
    clock.now_s += TOKENS_WINDOW_S
    assert traffic.rates().tokens_per_s == 0.0


async def test_watchers_hear_of_changes_together_and_not_too_often() -> None:
    traffic = Traffic()
    counts = [0, 0]

    async def watch(number: int) -> None:
        async for _ in traffic.changes():
            counts[number] += 1

    watchers = [asyncio.create_task(watch(number)) for number in range(2)]
    await asyncio.sleep(0.05)
    assert counts == [1, 1]
    for _ in range(50):
        traffic.touch()
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    quiet = list(counts)
    assert all(2 <= count <= 6 for count in quiet)
    await asyncio.sleep(0.5)
    assert counts == quiet
    for watcher in watchers:
        watcher.cancel()


async def test_a_watcher_sees_running_requests_grow_without_being_told() -> None:
    traffic = Traffic()
    traffic.begin(Request("r"))
    ticks = aiter(traffic.changes())
    await anext(ticks)
    async with asyncio.timeout(30):
        await anext(ticks)


@given(values=st.lists(st.floats(0, 100), min_size=1, max_size=50), share=st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_covers_its_share(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile([], 0.5) is None
