from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atlas.errors import BadRequest, BudgetExhausted, Conflict, RateLimited
from atlas.store.live import Live, open_live
from atlas.store.live_values import Ask, Grant
from atlas.types import Limits
from tests.store.live.conftest import NOTHING, WINDOW_S, Opener, Server

ids = itertools.count()
NONE = Limits()
PATIENCE_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """What is counted is asked here, not how long Redis may take to answer: on a busy machine that can be a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atlas.store.live.TIMEOUT_S", PATIENCE_S)
        patch.setattr("atlas.store.live_trust.WAIT_S", PATIENCE_S)
        yield


def ask(user: Limits = NONE, key: Limits = NONE, *, tokens: int = 10, cost: int = 0, **fields: Any) -> Ask:
    names = {"request_id": f"req_{next(ids)}", "owner": "usr_a", "key_id": "key_a", **fields}
    return Ask(user_limits=user, key_limits=key, tokens=tokens, cost=cost, **names)


async def used(live: Live, owner: str = "usr_a", key_id: str = "key_a") -> dict[tuple[str, str, str], int]:
    wide = Limits(tokens_per_day=1, tokens_per_month=1, cost_per_day=1, cost_per_month=1)
    found = await live.remaining(owner, key_id, wide, wide)
    return {(budget.whose, budget.kind, budget.period): budget.used for budget in found.budgets}


async def admitted(live: Live, asks: list[Ask]) -> list[Ask]:
    """Those of the asks, all made at once, that were let in."""
    results = await asyncio.gather(*(live.admit(each) for each in asks), return_exceptions=True)
    assert all(isinstance(result, Grant | RateLimited) for result in results), results
    return [each for each, result in zip(asks, results, strict=True) if isinstance(result, Grant)]


# Windows


async def hammer(live: Live, limits: Limits, *, for_s: float, tokens: int) -> list[float]:
    """Server times of what was let in while four clients asked as fast as they could, with a pause now and then."""
    times: list[float] = []
    end_s = time.monotonic() + for_s

    async def client(pause_s: float) -> None:
        while time.monotonic() < end_s:
            try:
                grant = await live.admit(one := ask(limits, tokens=tokens))
            except RateLimited:
                await asyncio.sleep(pause_s)
            else:
                times.append(grant.at)
                await live.settle(one, tokens=tokens, cost=0)

    await asyncio.gather(*(client(pause_s) for pause_s in (0.001, 0.003, 0.017, 0.11)))
    return sorted(times)


def most_in_a_window(times: list[float], window_s: float) -> int:
    inside: deque[float] = deque()
    most = 0
    for at in times:
        inside.append(at)
        while inside[0] < at - window_s:
            inside.popleft()
        most = max(most, len(inside))
    return most


async def test_every_sliding_window_admits_n_requests_and_no_more(live: Live) -> None:
    times = await hammer(live, Limits(requests_per_minute=23), for_s=3.5 * WINDOW_S, tokens=1)
    assert most_in_a_window(times, WINDOW_S) == 23
    # Demand never ended, so the log was full again as soon as an entry left: the 23rd next comes one window later.
    gaps = [later - earlier for earlier, later in zip(times, times[23:], strict=False)]
    assert gaps
    assert median(gaps) < WINDOW_S + 0.5  # not the longest: a busy machine holds those up who ask
    assert min(gaps) > WINDOW_S


async def test_no_sliding_window_admits_more_tokens_than_the_limit(live: Live) -> None:
    times = await hammer(live, Limits(tokens_per_minute=1000), for_s=3.5 * WINDOW_S, tokens=70)
    assert most_in_a_window(times, WINDOW_S) == 14  # 14 x 70 = 980
    assert len(times) > 2 * 14


async def test_what_was_given_back_is_free_at_once(live: Live) -> None:
    limits = Limits(tokens_per_minute=100)
    first = ask(limits, tokens=100)
    await live.admit(first)
    with pytest.raises(RateLimited):
        await live.admit(ask(limits, tokens=1))
    await live.settle(first, tokens=40, cost=0)
    grant = await live.admit(ask(limits, tokens=60))
    [window] = grant.limits
    assert (window.kind, window.limit, window.remaining) == ("tokens", 100, 0)


async def test_retry_after_is_exact_for_requests(live: Live) -> None:
    limits = Limits(requests_per_minute=2)
    first = await live.admit(ask(limits))
    await asyncio.sleep(0.3)
    await live.admit(ask(limits))
    with pytest.raises(RateLimited, match="requests_per_minute of this user is reached: 2 of 2") as caught:
        await live.admit(ask(limits))
    wait_s = caught.value.retry_after_s
    assert wait_s is not None
    assert wait_s < WINDOW_S - 0.3
    await asyncio.sleep(wait_s)
    again = await live.admit(ask(limits))
    assert again.at > first.at + WINDOW_S


async def test_retry_after_is_exact_for_tokens(live: Live) -> None:
    limits = Limits(tokens_per_minute=100)
    for tokens in (30, 30, 40):
        await live.admit(ask(limits, tokens=tokens))
        await asyncio.sleep(0.2)
    with pytest.raises(RateLimited, match="tokens_per_minute of this user is reached: 100 of 100") as caught:
        await live.admit(ask(limits, tokens=50))
    wait_s = caught.value.retry_after_s
    assert wait_s is not None
    await asyncio.sleep(wait_s)
    await live.admit(ask(limits, tokens=50))
    with pytest.raises(RateLimited):  # the first two have left, and no more than that
        await live.admit(ask(limits, tokens=11))


async def test_a_lowered_limit_waits_until_enough_has_left(live: Live) -> None:
    for _ in range(3):
        await live.admit(ask(Limits(requests_per_minute=3)))
        await asyncio.sleep(0.1)
    with pytest.raises(RateLimited) as caught:
        await live.admit(ask(Limits(requests_per_minute=1)))
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > WINDOW_S - 0.2 - 0.1  # the third one has to leave too


async def test_rejected_asks_count_nothing(live: Live) -> None:
    """The key has room where the user has none, and stays as it was."""
    user, key = Limits(requests_per_minute=1), Limits(requests_per_minute=9, tokens_per_minute=90, concurrency=9)
    await live.admit(ask(user, key))
    for _ in range(20):
        with pytest.raises(RateLimited):
            await live.admit(ask(user, key))
    grant = await live.admit(ask(NONE, key))
    assert [(window.kind, window.remaining) for window in grant.limits] == [("requests", 7), ("tokens", 70)]
    assert (await used(live))["user", "tokens", "day"] == 20


async def test_admitted_failures_count(live: Live) -> None:
    limits = Limits(requests_per_minute=1)
    await live.admit(failed := ask(limits))
    await live.settle(failed, tokens=0, cost=0)
    with pytest.raises(RateLimited):
        await live.admit(ask(limits))


async def test_the_tightest_window_is_told(live: Live) -> None:
    user = Limits(requests_per_minute=5, tokens_per_minute=1000)
    key = Limits(requests_per_minute=9, tokens_per_minute=100)
    grant = await live.admit(ask(user, key, tokens=30))
    told = [(window.kind, window.limit, window.remaining) for window in grant.limits]
    assert told == [("requests", 5, 4), ("tokens", 100, 70)]
    assert all(0 < window.reset_s <= WINDOW_S * 62 / 60 for window in grant.limits)
    assert (await live.admit(ask())).limits == ()


async def test_tokens_that_no_window_holds_are_refused_for_good(live: Live) -> None:
    with pytest.raises(BadRequest, match="needs 101 tokens, and tokens_per_minute of this key is 100"):
        await live.admit(ask(NONE, Limits(tokens_per_minute=100), tokens=101))


# Races


async def test_a_budget_worth_m_requests_admits_m(live: Live) -> None:
    limits = Limits(tokens_per_day=37 * 10)
    assert len(await admitted(live, [ask(limits) for _ in range(200)])) == 37


async def test_a_cost_budget_worth_m_requests_admits_m(live: Live) -> None:
    limits = Limits(cost_per_month=41 * 1_000_003)
    assert len(await admitted(live, [ask(NONE, limits, cost=1_000_003) for _ in range(200)])) == 41


async def test_a_window_of_n_admits_n_of_200_at_once(live: Live) -> None:
    assert len(await admitted(live, [ask(Limits(requests_per_minute=29)) for _ in range(200)])) == 29


async def test_a_token_window_admits_what_fits_of_200_at_once(live: Live) -> None:
    assert len(await admitted(live, [ask(Limits(tokens_per_minute=315)) for _ in range(200)])) == 31


async def test_concurrency_c_admits_c_and_the_next_when_one_ends(live: Live) -> None:
    limits = Limits(concurrency=7)
    running = await admitted(live, [ask(NONE, limits) for _ in range(200)])
    assert len(running) == 7
    with pytest.raises(RateLimited, match="concurrency of this key is reached: 7 of 7") as caught:
        await live.admit(ask(NONE, limits))
    assert caught.value.retry_after_s == 1.0
    await live.settle(running[0], tokens=1, cost=0)
    assert len(await admitted(live, [ask(NONE, limits) for _ in range(200)])) == 1


async def test_two_lives_share_the_counts(live: Live, open_on: Opener, shared_server: Server) -> None:
    """The counts are in Redis: asking over another connection sees the same budget."""
    other = open_on(shared_server)
    await live.ping()
    await other.ping()
    limits = Limits(tokens_per_day=600)
    both = await asyncio.gather(
        admitted(live, [ask(limits) for _ in range(100)]), admitted(other, [ask(limits) for _ in range(100)])
    )
    assert sum(map(len, both)) == 60


# Reserve, extend, settle


async def test_budgets_follow_reserve_extend_and_settle(live: Live) -> None:
    one = ask(tokens=100, cost=5)
    await live.admit(one)
    assert await live.extend(one, tokens=300, cost=15)
    assert set((await used(live)).values()) == {300, 15}
    await live.settle(one, tokens=250, cost=12)
    counted = await used(live)
    assert {key: value for key, value in counted.items() if key[1] == "tokens"} == {
        ("user", "tokens", "day"): 250,
        ("user", "tokens", "month"): 250,
        ("key", "tokens", "day"): 250,
        ("key", "tokens", "month"): 250,
    }
    assert {value for key, value in counted.items() if key[1] == "cost"} == {12}


async def test_settling_twice_counts_once_and_an_unknown_id_is_fine(live: Live) -> None:
    await live.admit(one := ask(tokens=100))
    for _ in range(3):
        await live.settle(one, tokens=40, cost=0)
    await live.settle(ask(tokens=100), tokens=70, cost=0)
    assert (await used(live))["key", "tokens", "day"] == 40


async def test_a_refused_extension_changes_nothing(live: Live) -> None:
    user = Limits(tokens_per_day=100)
    await live.admit(one := ask(user, tokens=60))
    assert not await live.extend(one, tokens=101, cost=0)
    assert (await used(live))["user", "tokens", "day"] == 60
    assert await live.extend(one, tokens=100, cost=0)
    await live.settle(one, tokens=100, cost=0)
    with pytest.raises(BudgetExhausted, match=r"tokens_per_day of this user is used up: 100 of 100.* 00:00 UTC") as caught:
        await live.admit(ask(user, tokens=1))
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= 86_400


async def test_an_extension_needs_room_in_the_window(live: Live) -> None:
    limits = Limits(tokens_per_minute=100)
    await live.admit(one := ask(limits, tokens=60))
    await live.admit(other := ask(limits, tokens=30))
    assert not await live.extend(one, tokens=71, cost=0)
    assert await live.extend(one, tokens=70, cost=0)
    await live.settle(other, tokens=10, cost=0)
    assert await live.extend(one, tokens=90, cost=0)
    assert not await live.extend(one, tokens=91, cost=0)


async def test_extending_an_unknown_request_is_refused(live: Live) -> None:
    assert not await live.extend(ask(), tokens=10, cost=0)


async def test_a_running_id_is_a_conflict(live: Live) -> None:
    one = ask()
    await live.admit(one)
    with pytest.raises(Conflict):
        await live.admit(one)
    await live.settle(one, tokens=10, cost=0)
    assert (await used(live))["user", "tokens", "day"] == 10


async def test_a_window_forgets_what_left_it_whatever_is_settled_late(live: Live) -> None:
    """Tokens charged more than a window ago are in no bucket any more; settling must not give back others' tokens."""
    limits = Limits(tokens_per_minute=100)
    await live.admit(old := ask(limits, tokens=100))
    await asyncio.sleep(WINDOW_S * 62 / 60)
    await live.admit(ask(limits, tokens=80))
    await live.settle(old, tokens=0, cost=0)
    with pytest.raises(RateLimited):
        await live.admit(ask(limits, tokens=21))
    await live.admit(ask(limits, tokens=20))


async def test_nobody_is_not_counted(live: Live) -> None:
    nobody = ask(owner="", key_id="")
    grant = await live.admit(nobody)
    assert abs(grant.at - time.time()) < 60
    assert await live.extend(nobody, tokens=10**9, cost=0)
    await live.settle(nobody, tokens=10**9, cost=0)


@settings(max_examples=25)
@example([("admit", 0, 150, 0), ("admit", 1, 1, 0), ("settle", 0, 160, 0), ("extend", 1, 1, 0)])
@example([("admit", 0, 22, 0), ("admit", 1, 1, 0), ("settle", 1, 149, 0), ("extend", 0, 1, 0), ("extend", 0, 23, 0)])
@given(
    st.lists(
        st.tuples(st.sampled_from(["admit", "extend", "settle"]), st.integers(0, 5), st.integers(1, 60), st.integers(0, 9)),
        max_size=40,
    )
)
def test_counts_equal_a_model_after_any_sequence(shared_server: Server, steps: list[tuple[str, int, int, int]]) -> None:
    """Budgets in Redis are the sum of what each request is charged, and never above the limit at an admission."""
    asyncio.run(_compare_with_model(shared_server, steps))


async def _compare_with_model(server: Server, steps: list[tuple[str, int, int, int]]) -> None:
    live = open_live(server.url, source=lambda: NOTHING, namespace=f"model{next(ids)}")
    limits = Limits(tokens_per_day=150)
    charged: dict[int, int] = {}
    asks: dict[int, Ask] = {}
    settled = 0
    try:
        for what, number, tokens, cost in steps:
            total = settled + sum(charged.values())
            if what == "admit" and number not in charged:
                asks[number] = ask(limits, key_id="", tokens=tokens, cost=cost)
                if total + tokens <= 150:
                    await live.admit(asks[number])
                    charged[number] = tokens
                else:
                    with pytest.raises(BudgetExhausted):
                        await live.admit(asks[number])
            elif what == "extend" and number in charged:
                wanted = max(tokens, charged[number])
                fits = wanted == charged[number] or total - charged[number] + wanted <= 150  # nothing more always fits
                assert await live.extend(asks[number], tokens=tokens, cost=cost) == fits
                charged[number] = wanted if fits else charged[number]
            elif what == "settle" and number in charged:
                await live.settle(asks[number], tokens=tokens, cost=cost)
                settled += tokens
                del charged[number]
            assert (await used(live, key_id=""))["user", "tokens", "day"] == settled + sum(charged.values())
    finally:
        await live.close()
