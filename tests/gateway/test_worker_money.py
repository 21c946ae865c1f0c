"""What tasks cost: one admission and one usage row each, generations within limits, and nothing twice after a crash."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from atlas.engine import ScriptedEngine
from atlas.settings import Price
from atlas.types import Message, Prompt, Route
from atlas.workline import Finish
from tests.gateway.conftest import wait_for
from tests.gateway.metered import redis
from tests.gateway.people import settle
from tests.gateway.workshop import RIGHT, TASK, WRONG, Shop, connected, leased, open_shop
from tests.store.live.conftest import Server

__all__ = ["redis"]  # a fixture

LONG = "word " * 200
ASK = Prompt(messages=(Message(role="user", content="hi"),), n=1)


@pytest.fixture(scope="module")
def shop(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The model is wrong twice and right then, over and over; tokens have a price."""
    path: Path = tmp_path_factory.mktemp("shop") / "data"
    engine = ScriptedEngine([WRONG, WRONG.replace("x + 1", "x + 2"), RIGHT], model="scripted")
    with open_shop(redis, path, engine, slice_tokens=16, prices={"scripted": Price(prompt=1.0, completion=2.0)}) as shop:
        yield shop


def test_all_attempts_of_a_task_are_one_request(shop: Shop) -> None:
    who = shop.limited(requests_per_minute=1, concurrency=1)
    task_id = shop.submit(who=who)
    with shop.worker():
        assert shop.closed(task_id).outcome == "done"
    run = shop.run_of(task_id)
    assert len(run.attempts) == 3
    [usage] = shop.usage(task_id)
    assert (usage.state, usage.key_id) == ("completed", who.key_id)
    assert usage.completion_tokens == run.num_tokens
    assert usage.prompt_tokens > len(TASK.task) * 3  # a scripted model counts bytes
    assert usage.cost == round(usage.prompt_tokens * 1.0 + usage.completion_tokens * 2.0)


def test_a_task_that_its_owner_may_not_begin_now_waits_and_does_not_count_as_tried(shop: Shop) -> None:
    who = shop.limited(requests_per_minute=1)
    key = shop.keys[who.key_id]
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    with httpx.Client(base_url=shop.running.url, headers={"x-api-key": key}) as http:
        assert http.post("/v1/chat/completions", json=body).status_code == 200
    task_id = shop.submit(who=who, max_deliveries=1)
    with shop.worker():
        wait_for(lambda: shop.task(task_id).excused >= 1, 30)
    task = shop.task(task_id)
    assert task.state == "queued"
    assert task.not_before is not None
    assert "requests" in task.reason
    assert shop.usage(task_id) == []
    shop.do(shop.journal.cancel(task_id))


def test_a_task_ends_with_what_its_owners_budget_lets_it_have(redis: Server, tmp_path: Path) -> None:
    engine = ScriptedEngine([WRONG.replace("+ 1", f"+ {number}") for number in range(1, 40)], model="scripted")
    with open_shop(redis, tmp_path / "data", engine, slice_tokens=16) as shop:
        hard = replace(TASK, tests=replace(TASK.tests, code="assert double(1) == 77"), route=Route(k=2, max_attempts=20))
        task_id = shop.submit(hard, who=shop.limited(tokens_per_day=3000))
        with shop.worker():
            task = shop.closed(task_id)
        run = shop.run_of(task_id)
        assert (task.outcome, run.ended_by, run.failure, run.verdict.status) == ("done", "budget", None, "failed")
        assert 0 < len(run.attempts) < 20
        [usage] = shop.usage(task_id)
        assert 1500 < usage.prompt_tokens + usage.completion_tokens <= 3000


def test_without_any_budget_a_task_fails_and_says_why(shop: Shop) -> None:
    task_id = shop.submit(who=shop.limited(tokens_per_day=50))
    with shop.worker():
        task = shop.closed(task_id)
    assert (task.outcome, task.delivery) == ("failed", 1), task
    assert shop.usage(task_id) == []


async def test_a_generation_whose_extension_is_refused_ends_with_length(redis: Server, tmp_path: Path) -> None:
    engine = ScriptedEngine([LONG], model="scripted")
    with open_shop(redis, tmp_path / "data", engine, slice_tokens=16) as shop:
        who = shop.limited(tokens_per_day=200)
        task_id = shop.submit(who=who)
        async with connected(shop.line()) as line:
            held = await leased(line)
            candidates = await held.tools(None).generate(ASK)
            [generation] = [one async for one in candidates.finished()]
            assert generation.finish_reason == "length"
            assert 16 <= generation.num_tokens < 200
            await held.call(Finish, outcome="done")
        [usage] = shop.usage(task_id)
        assert usage.completion_tokens == generation.num_tokens
        assert usage.prompt_tokens + usage.completion_tokens <= 200


async def test_what_a_task_cost_and_how_it_ended_are_one_commit(shop: Shop) -> None:
    commits: list[str] = []

    def committed(_: object) -> None:
        commits.append(threading.current_thread().name)

    for _ in range(5):
        task_id = shop.submit()
        async with connected(shop.line()) as line:
            held = await leased(line)
            [generation] = [one async for one in (await held.tools(None).generate(ASK)).finished()]
            engine = shop.running.deps.store.tasks._ledger.database.engine
            before = commits.count("ledger")
            sa.event.listen(engine, "commit", committed)
            assert (await held.call(Finish, outcome="done", result=b"42")).finish == "closed"
            sa.event.remove(engine, "commit", committed)
        assert commits.count("ledger") == before + 1
        [usage] = shop.usage(task_id)
        assert (usage.state, usage.completion_tokens) == ("completed", generation.num_tokens)
        assert shop.task(task_id).outcome == "done"


def test_a_killed_worker_leaves_a_row_for_what_it_used_and_the_next_pays_for_its_own(redis: Server, tmp_path: Path) -> None:
    engine = ScriptedEngine([LONG + RIGHT], model="scripted", delay_s=0.01)
    with open_shop(redis, tmp_path / "data", engine, lease_s=1.5, slice_tokens=16) as shop:
        task_id = shop.submit()
        first = shop.start_worker()
        wait_for(lambda: engine.stats().generated_tokens > 30, 30)
        first.send_signal(signal.SIGKILL)
        first.wait(10)
        with shop.worker():
            assert shop.closed(task_id).outcome == "done"
        wait_for(lambda: len(shop.usage(task_id)) == 2)
        interrupted, completed = shop.usage(task_id)
        assert [interrupted.state, completed.state] == ["interrupted", "completed"]
        assert 0 < interrupted.completion_tokens < completed.completion_tokens == shop.run_of(task_id).num_tokens
        assert engine.stats().generated_tokens - 5 <= interrupted.completion_tokens + completed.completion_tokens
        assert shop.running.deps.store.usage.open_reservations() == []


def test_each_task_is_paid_by_its_own_owner(redis: Server, tmp_path: Path) -> None:
    with open_shop(redis, tmp_path / "data") as shop:
        store = shop.running.deps.store
        people = settle(store)
        owners: dict[str, str] = {}
        for user in (people.member, people.other):
            who = store.keys.verify(store.keys.mint("k", owner=user.id).key)
            owners |= {shop.submit(who=who): user.id for _ in range(3)}
        with shop.worker(), shop.worker():
            assert {shop.closed(task_id).outcome for task_id in owners} == {"done"}
        for task_id, owner in owners.items():
            [usage] = shop.usage(task_id)
            assert (usage.owner, usage.state) == (owner, "completed")
            assert usage.completion_tokens == shop.run_of(task_id).num_tokens


def test_chats_beside_another_owners_task_of_twenty_are_paid_by_who_chats(redis: Server, tmp_path: Path) -> None:
    """Both run at once, and each request is one row, of its own owner, with the tokens it was told."""
    engine = ScriptedEngine(
        [" ".join(map(str, range(3000)))], model="scripted", delay_s=0.01
    )  # half a minute, unless it is cancelled
    with open_shop(redis, tmp_path / "data", engine) as shop:
        store = shop.running.deps.store
        people = settle(store)
        solver = store.keys.verify(store.keys.mint("k", owner=people.member.id).key)
        headers = {"authorization": f"Bearer {store.keys.mint('k', owner=people.other.id).key}"}
        task_id = shop.submit(replace(TASK, route=Route(k=20, max_attempts=50)), who=solver)
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        with shop.worker(), shop.running.http(**headers) as http:
            wait_for(lambda: len(engine.prompts) >= 1, 30)
            told = [http.post("/v1/chat/completions", json=body).json()["usage"]["total_tokens"] for _ in range(3)]
            assert not shop.task(task_id).is_closed
            shop.do(shop.journal.cancel(task_id))
            assert shop.closed(task_id).outcome == "cancelled"
        [task] = shop.usage(task_id)
        assert (task.owner, task.state) == (people.member.id, "aborted")
        others = [row for row in store.usage.recent(limit=1000) if row.request_id != task.request_id]
        assert [row.owner for row in others] == [people.other.id] * 3
        assert sorted(row.prompt_tokens + row.completion_tokens for row in others) == sorted(told)


def test_a_disabled_owner_has_nothing_done(redis: Server, tmp_path: Path) -> None:
    with open_shop(redis, tmp_path / "data") as shop:
        store = shop.running.deps.store
        people = settle(store)
        who = store.keys.verify(store.keys.mint("k", owner=people.member.id).key)
        task_id = shop.submit(who=who)
        store.accounts.update(people.member.id, disabled=True, actor=people.owner.id)
        with shop.worker():
            task = shop.closed(task_id)
        assert task.outcome == "failed"
        assert "disabled" in task.reason
        assert shop.usage(task_id) == []


def test_a_chat_does_not_wait_for_a_task_to_end(redis: Server, tmp_path: Path) -> None:
    """With one slot, a chat that comes while a task is solved has its turn between two candidates of it."""
    engine = ScriptedEngine([WRONG + "word " * 50], model="scripted", delay_s=0.005)
    with open_shop(redis, tmp_path / "data", engine, max_running=1) as shop:
        task_id = shop.submit(replace(TASK, route=Route(k=1, max_attempts=50)), priority=2)
        with shop.worker():
            wait_for(lambda: len(engine.prompts) >= 2, 30)
            body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            with shop.running.http() as http:
                assert http.post("/v1/chat/completions", json=body).status_code == 200
            assert not shop.task(task_id).is_closed
            shop.do(shop.journal.cancel(task_id))
            assert shop.closed(task_id).outcome == "cancelled"
        [usage] = shop.usage(task_id)
        assert usage.state == "aborted"
