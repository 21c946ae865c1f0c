"""What workers tell while they work, and that they are alive: it costs a short task next to nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from atlas.errors import DeliveryOver
from atlas.ralph.held import C, Held
from atlas.ralph.teller import Teller
from atlas.ralph.worker import ended
from atlas.types import CandidateEnded, CandidateRef
from atlas.workline import Done, Finish, GiveBack, PutEvents
from tests.gateway.metered import redis
from tests.gateway.workshop import Shop, connected, eventually, leased, shop
from tests.store.journals import history

__all__ = ["redis", "shop"]  # fixtures


def _ended(index: int) -> CandidateEnded:
    return CandidateEnded(at_s=0.0, candidate=CandidateRef(attempt=1, index=index), num_tokens=1, state="no_code")


async def test_events_travel_together_in_order_and_the_last_ones_with_the_end(shop: Shop) -> None:
    task_id = shop.submit()
    events = [_ended(number) for number in range(40)]
    async with connected(shop.line()) as line, connected(shop.line()) as other:
        held = await leased(line)
        teller = Teller(held)
        for event in events:
            teller.tell(event)
        last = await teller.rest()
        assert 0 < len(last) < len(events)
        with pytest.raises(DeliveryOver):
            await Held(other, held.lease).call(Finish, outcome="done", events=(b"{}",))
        assert (await held.call(Finish, outcome="done", events=last)).finish == "closed"
        assert (await held.call(Finish, outcome="done", events=last)).finish == "repeated"
    told = [body for _, body in shop.do(history(shop.journal, task_id))]
    assert told == [*map(msgspec.json.encode, events), b"done"]


async def test_events_that_follow_one_another_travel_together_or_with_the_end(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(Held):
        num_told = 0

        async def call(self, kind: type[C], **fields: Any) -> Done:
            self.num_told += kind is PutEvents
            return await super().call(kind, **fields)

    task_id = shop.submit()
    events = [_ended(number) for number in range(3)]
    async with connected(shop.line()) as line:
        held = Counting(line, (await leased(line)).lease)
        teller = Teller(held)
        for event in events[:2]:
            teller.tell(event)
            await asyncio.sleep(0)
        await eventually(lambda: held.num_told == 1 and teller._telling is not None and teller._telling.done())
        monkeypatch.setattr("atlas.ralph.teller.GATHER_S", 3600.0)
        teller.tell(events[2])
        for _ in range(5):
            await asyncio.sleep(0)
        last = await asyncio.wait_for(teller.rest(), 30)
        assert last == (msgspec.json.encode(events[2]),)
        assert (await held.call(Finish, outcome="done", events=last)).finish == "closed"
        assert held.num_told == 1
    told = [body for _, body in shop.do(history(shop.journal, task_id))]
    assert told == [*map(msgspec.json.encode, events), b"done"]


async def test_what_is_done_before_its_first_beat_was_never_noted_as_running(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.ralph.held.FIRST_BEAT_S", 3600.0)  # a third of a lease, if that is less
    task_id = shop.submit()
    async with connected(shop.line()) as line:
        held = await leased(line)
        keeping = asyncio.create_task(held.keep())
        await held.call(PutEvents, bodies=(b"{}",))
        assert shop.task(task_id).state == "leased"
        assert (await held.call(Finish, outcome="done")).finish == "closed"
        await ended(keeping)
    assert shop.task(task_id).outcome == "done"


async def test_events_are_told_before_a_task_is_given_back(shop: Shop) -> None:
    task_id = shop.submit()
    async with connected(shop.line()) as line:
        held = await leased(line)
        teller = Teller(held)
        for number in range(20):
            teller.tell(_ended(number))
        await teller.told()
        assert (await held.call(GiveBack, reason="somebody else may", is_excused=True)).is_done
        again = await leased(line)
        await again.call(Finish, outcome="done")
    told = [body for _, body in shop.do(history(shop.journal, task_id))]
    assert told == [*(msgspec.json.encode(_ended(number)) for number in range(20)), b"done"]
