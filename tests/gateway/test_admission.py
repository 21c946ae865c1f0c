"""The queue in front of the engine: order, bounds, and that no slot is ever lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atlas.errors import EngineOverloaded
from atlas.gateway.admission import AGEING_S, AdmissionQueue, Ticket


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def queue_of(
    capacity: int = 1, *, max_waiting: int = 1000, timeout_s: float = 1000, clock: Clock | None = None
) -> AdmissionQueue:
    return AdmissionQueue(capacity, max_waiting=max_waiting, timeout_s=timeout_s, clock=clock or Clock())


def serve_all(queue: AdmissionQueue, running: Ticket, waiting: Sequence[Ticket]) -> list[Ticket]:
    """End one request after the other; the order in which the others were admitted, capacity being one at a time."""
    served: list[Ticket] = []
    left = list(waiting)
    while left:
        queue.leave(running)
        [running] = [ticket for ticket in left if ticket.held]
        served.append(running)
        left.remove(running)
    queue.leave(running)
    return served


async def test_a_free_queue_admits_at_once() -> None:
    queue = queue_of(2)
    first, second = queue.enter("a", priority=1, cost=1), queue.enter("b", priority=1, cost=1)
    assert (first.admitted, second.admitted, queue.used, queue.num_running) == (None, None, 2, 2)
    assert await queue.wait(first)
    assert queue.position(first) == 0


async def test_positions_are_the_order_of_admission() -> None:
    clock = Clock()
    queue = queue_of(clock=clock)
    running = queue.enter("a", priority=1, cost=1)
    tickets = [
        queue.enter(owner, priority=priority, cost=1) for owner, priority in [("a", 1), ("a", 1), ("b", 1), ("c", 0), ("a", 2)]
    ]
    ranked = sorted(tickets, key=queue.position)
    assert [queue.position(ticket) for ticket in ranked] == [1, 2, 3, 4, 5]
    assert serve_all(queue, running, tickets) == ranked
    assert [queue.position(ticket) for ticket in tickets] == [0] * 5


async def test_p0_comes_before_p1_before_p2() -> None:
    queue = queue_of()
    running = queue.enter("x", priority=0, cost=1)
    tickets = [queue.enter(f"o{i}", priority=2 - i % 3, cost=1) for i in range(9)]
    assert [ticket.priority for ticket in serve_all(queue, running, tickets)] == [0] * 3 + [1] * 3 + [2] * 3


async def test_waiting_moves_a_request_up() -> None:
    clock = Clock()
    queue = queue_of(clock=clock)
    running = queue.enter("x", priority=0, cost=1)
    old = queue.enter("patient", priority=2, cost=1)
    clock.now_s += 2 * AGEING_S
    fresh = [queue.enter("eager", priority=0, cost=1) for _ in range(5)]
    assert serve_all(queue, running, [old, *fresh])[0] is old


async def test_an_owner_with_many_requests_does_not_delay_anothers_one() -> None:
    queue = queue_of()
    running = queue.enter("many", priority=1, cost=1)
    many = [queue.enter("many", priority=1, cost=1) for _ in range(20)]
    one = queue.enter("one", priority=1, cost=1)
    assert serve_all(queue, running, [*many, one]).index(one) <= 1


async def test_a_request_for_many_candidates_counts_as_many() -> None:
    queue = queue_of(32)
    running = queue.enter("x", priority=1, cost=32)
    wide = [queue.enter("wide", priority=1, cost=20) for _ in range(3)]
    narrow = [queue.enter("narrow", priority=1, cost=1) for _ in range(40)]
    order: list[Ticket] = []
    pending = [*wide, *narrow]
    held = [running]
    while pending:
        queue.leave(held.pop(0))
        fresh = [ticket for ticket in pending if ticket.held]
        order += sorted(fresh, key=lambda ticket: ticket.tag)
        held += fresh
        pending = [ticket for ticket in pending if not ticket.held]
    assert order.index(wide[1]) >= 20  # beside 20 candidates of one owner, the other has had 20 as well
    assert order.index(wide[2]) > order.index(narrow[39])


async def test_more_candidates_than_slots_wait_for_all_of_them_and_are_not_overtaken() -> None:
    queue = queue_of(4)
    small = [queue.enter("a", priority=1, cost=1) for _ in range(2)]
    huge = queue.enter("b", priority=1, cost=128)
    later = queue.enter("c", priority=1, cost=1)
    assert (huge.held, later.held) == (0, 0)
    for ticket in small:
        queue.leave(ticket)
    assert (huge.held, later.held) == (4, 0)
    queue.shrink(huge, 3)  # 125 of its candidates have ended
    assert (huge.held, later.held, queue.used) == (3, 1, 4)


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    queue = queue_of(max_waiting=2)
    for _ in range(3):
        queue.enter("a", priority=1, cost=1)
    with pytest.raises(EngineOverloaded) as caught:
        queue.enter("b", priority=0, cost=1)
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1
    assert len(queue) == 2


async def test_who_waits_too_long_is_refused_and_the_next_ones_get_their_turn() -> None:
    queue = AdmissionQueue(1, max_waiting=10, timeout_s=0.05)
    running = queue.enter("a", priority=1, cost=1)
    late = queue.enter("b", priority=1, cost=1)
    with pytest.raises(EngineOverloaded, match=r"queue\.timeout_s"):
        await queue.wait(late)
    queue.leave(late)
    next_one = queue.enter("c", priority=1, cost=1)
    queue.leave(running)
    assert await queue.wait(next_one)
    assert queue.used == 1


async def test_leaving_the_line_wakes_the_one_who_waits() -> None:
    queue = queue_of()
    queue.enter("a", priority=1, cost=1)
    ticket = queue.enter("b", priority=1, cost=1)
    waiting = asyncio.create_task(queue.wait(ticket))
    await asyncio.sleep(0)
    queue.leave(ticket)
    assert not await waiting
    assert len(queue) == 0


async def test_a_cancelled_waiter_keeps_its_place_until_it_leaves() -> None:
    queue = queue_of()
    running = queue.enter("a", priority=1, cost=1)
    ticket = queue.enter("b", priority=1, cost=1)
    waiting = asyncio.create_task(queue.wait(ticket))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    queue.leave(running)
    assert queue.used == 1
    queue.leave(ticket)
    assert (queue.used, queue.num_running) == (0, 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.integers(0, 4), st.integers(0, 2), st.integers(1, 40)),
        st.tuples(st.just("leave"), st.integers(0, 200), st.just(0), st.just(0)),
        st.tuples(st.just("shrink"), st.integers(0, 200), st.just(0), st.integers(0, 8)),
        st.tuples(st.just("wait"), st.integers(1, 40), st.just(0), st.just(0)),
        st.tuples(st.just("expire"), st.integers(0, 200), st.just(0), st.just(0)),
    ),
    max_size=120,
)


@example(steps=[("enter", 0, 0, 1), ("enter", 1, 1, 2), ("enter", 2, 2, 1), ("wait", 40, 0, 0)], capacity=2)
@given(steps=STEPS, capacity=st.integers(1, 32))
@settings(max_examples=200)
def test_no_slot_is_lost_whatever_happens(steps: list[tuple[str, int, int, int]], capacity: int) -> None:
    asyncio.run(_play(steps, capacity))


async def _play(steps: list[tuple[str, int, int, int]], capacity: int) -> None:
    clock = Clock()
    queue = queue_of(capacity, max_waiting=20, clock=clock)
    tickets: list[Ticket] = []
    for what, number, priority, cost in steps:
        if what == "enter" and len(queue) < 20:
            tickets.append(queue.enter(f"o{number}", priority=priority, cost=cost))
        elif what == "wait":
            clock.now_s += number
        elif what != "enter" and tickets:
            _change(queue, tickets[number % len(tickets)], what, cost)
        _check(queue, tickets, capacity)
    for ticket in tickets:
        queue.leave(ticket)
    assert (queue.used, queue.num_running, len(queue)) == (0, 0, 0)


def _change(queue: AdmissionQueue, ticket: Ticket, what: str, slots: int) -> None:
    if what == "leave":
        queue.leave(ticket)
    elif what == "shrink":
        queue.shrink(ticket, slots)
    elif ticket.admitted is not None and not ticket.admitted.done():
        queue._expire(ticket)


def _check(queue: AdmissionQueue, tickets: list[Ticket], capacity: int) -> None:
    for ticket in tickets:  # as those who stream ask; it may move the line
        queue.position(ticket)
    waiting = [ticket for ticket in tickets if ticket.admitted is not None and not ticket.admitted.done()]
    assert queue.used == sum(ticket.held for ticket in tickets) <= capacity
    assert queue.num_running == sum(ticket.held > 0 for ticket in tickets)
    assert len(queue) == len(waiting) == sum(queue.waiting())
    assert not any(ticket.held for ticket in waiting)
    if waiting:  # work is conserved: whoever is first does not fit
        first = min(waiting, key=queue.position)
        assert queue.used + min(first.cost, capacity) > capacity


@given(
    backlogs=st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=15), min_size=2, max_size=5),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=150)
def test_owners_who_wait_get_equal_shares_of_candidates(backlogs: list[list[int]], order: object) -> None:
    asyncio.run(_share(backlogs, order))


async def _share(backlogs: list[list[int]], order: object) -> None:
    """At any moment, two owners who both still wait have been given the same, but for one largest request each."""
    queue = queue_of(20)
    running = queue.enter("x", priority=1, cost=20)
    arrivals = [(owner, cost) for owner, costs in enumerate(backlogs) for cost in costs]
    order.shuffle(arrivals)  # type: ignore[attr-defined]  # hypothesis gives a Random
    waiting = [queue.enter(str(owner), priority=1, cost=cost) for owner, cost in arrivals]
    given_to: Counter[str] = Counter()
    held = [running]
    while waiting:
        queue.leave(held.pop(0))
        for ticket in [ticket for ticket in waiting if ticket.held]:
            given_to[ticket.owner] += ticket.cost
            waiting.remove(ticket)
            held.append(ticket)
        shares = [given_to[owner] for owner in {ticket.owner for ticket in waiting}]
        assert not shares or max(shares) - min(shares) <= 2 * 20


@given(late=st.integers(1, 60), flood=st.integers(1, 4))
@settings(max_examples=50)
def test_a_low_priority_waits_no_longer_than_its_ageing_and_a_few_turns(late: int, flood: int) -> None:
    asyncio.run(_starve(late, flood))


async def _starve(late: int, flood: int) -> None:
    """One slot, a second per request, and `flood` owners who always have a p0 request waiting."""
    clock = Clock()
    queue = queue_of(clock=clock)
    running = queue.enter("x", priority=0, cost=1)
    eager = [queue.enter(f"eager{i}", priority=0, cost=1) for i in range(flood)]
    for _ in range(late):
        clock.now_s += 1
        running, eager = _turn(queue, running, eager)
    low = queue.enter("low", priority=2, cost=1)
    turns = 0
    while not low.held:
        clock.now_s += 1
        turns += 1
        running, eager = _turn(queue, running, eager)
        assert turns <= 2 * AGEING_S + flood + 2
    queue.leave(low)


def _turn(queue: AdmissionQueue, running: Ticket, eager: list[Ticket]) -> tuple[Ticket, list[Ticket]]:
    """The running one ends; whoever was admitted instead asks again behind the others."""
    queue.leave(running)
    [admitted] = [ticket for ticket in eager if ticket.held] or [running]
    if admitted is running:
        return running, eager
    return admitted, [ticket for ticket in eager if not ticket.held] + [queue.enter(admitted.owner, priority=0, cost=1)]
