"""Faults in every layer between a worker and the model: whose they are is never mistaken, and no task is lost by them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from atlas.engine import Group, ScriptedEngine
from atlas.errors import EngineFailed, LedgerUnavailable
from atlas.types import Message, Prompt, Route, WorkRetried
from atlas.workline import Beat, Finish
from tests.gateway.conftest import wait_for
from tests.gateway.metered import redis
from tests.gateway.workshop import RIGHT, TASK, Shop, connected, eventually, leased, open_shop
from tests.ledgers import locked
from tests.store.live.conftest import Server

__all__ = ["redis"]  # a fixture

LEASE_S = 1.5
ASK = Prompt(messages=(Message(role="user", content="Write double(x)."),))
SLOW = "# " + "thinking " * 60 + "\n" + RIGHT


class BrokenEngine(ScriptedEngine):
    """Fails in the middle of a generation, so many times."""

    def __init__(self, num_failures: int) -> None:
        super().__init__([RIGHT], model="scripted")
        self.left = num_failures

    async def submit(self, prompt: Prompt) -> Group:
        group = await super().submit(prompt)
        if self.left:
            self.left -= 1
            group.cancel()
            group.fail(EngineFailed("the engine broke while it decoded"))
        return group


@pytest.fixture(scope="module")
def shop(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Its leases are short, and its model takes its time."""
    path: Path = tmp_path_factory.mktemp("shop") / "data"
    with open_shop(redis, path, ScriptedEngine([SLOW], model="scripted", delay_s=0.01), lease_s=LEASE_S) as shop:
        yield shop


def at_work(shop: Shop, task_id: str) -> None:
    """Wait until its candidates decode; it may not be told as running yet."""
    before = shop.engine.stats().generated_tokens
    wait_for(lambda: shop.task(task_id).worker != "" and shop.engine.stats().generated_tokens > before + 5, 30)


def test_a_worker_that_is_killed_is_replaced_by_another(shop: Shop) -> None:
    task_id = shop.submit()
    first = shop.start_worker()
    at_work(shop, task_id)
    first.kill()
    first.wait(10)
    with shop.worker():
        task = shop.closed(task_id)
    assert (task.outcome, task.delivery) == ("done", 2)
    assert shop.run_of(task_id).verdict.status == "verified"
    assert [usage.state for usage in shop.usage(task_id)] == ["interrupted", "completed"]


def test_a_worker_that_stood_still_for_too_long_has_lost_its_task_and_takes_the_next(shop: Shop) -> None:
    task_id = shop.submit()
    stopped = shop.start_worker()
    at_work(shop, task_id)
    stopped.send_signal(signal.SIGSTOP)
    wait_for(lambda: shop.task(task_id).state == "queued", 30)
    with shop.worker():
        task = shop.closed(task_id)
    stopped.send_signal(signal.SIGCONT)
    assert (task.outcome, task.delivery, task.closed_by) == ("done", 2, 2)
    another = shop.submit()
    assert shop.closed(another).outcome == "done"  # the one that woke up does it
    assert stopped.poll() is None
    stopped.terminate()
    assert stopped.wait(20) == 0
    assert len(shop.usage(task_id)) == 2


async def test_a_result_that_comes_too_late_is_counted_and_thrown_away(shop: Shop) -> None:
    task_id = shop.submit()
    async with connected(shop.line()) as late, connected(shop.line()) as other:
        held = await leased(late)
        await held.call(Beat)
        again = await leased(other)  # once the first lease has ended
        assert (again.lease.task, again.lease.delivery) == (task_id, 2)
        assert (await held.call(Finish, outcome="done", result=b"late")).finish == "fenced"
        assert (await again.call(Finish, outcome="done", result=b"in time")).finish == "closed"
    assert shop.task(task_id).num_fenced == 1
    assert shop.do(shop.journal.result(task_id)) == b"in time"


async def test_who_has_lost_a_task_hears_of_it_unasked(shop: Shop) -> None:
    task_id = shop.submit()
    async with connected(shop.line()) as line:
        held = await leased(line)
        await held.call(Beat)
        with line.heeding(held.lease.task, held.lease.delivery, held._order):
            await eventually(held.is_lost.is_set)
    shop.do(shop.journal.cancel(task_id))


@pytest.fixture
def hasty_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file, whatever other tests use, and soon given up while somebody else holds it."""
    monkeypatch.setattr("tests.ledgers.SERVER_URL", "")
    monkeypatch.setattr("atlas.store.database.BUSY_TIMEOUT_MS", 100)


@pytest.mark.usefixtures("hasty_ledger")
async def test_an_end_that_the_ledger_does_not_take_is_told_again_and_paid_once(redis: Server, tmp_path: Path) -> None:
    with open_shop(redis, tmp_path / "data") as shop:
        task_id = shop.submit()
        async with connected(shop.line()) as line:
            held = await leased(line)
            [generation] = [one async for one in (await held.tools(None).generate(ASK)).finished()]
            with locked(shop.path):
                for _ in range(2):
                    with pytest.raises(LedgerUnavailable):
                        await held.call(Finish, outcome="done", result=b"42")
                assert shop.task(task_id).state == "leased"
                assert shop.usage(task_id) == []
            assert (await held.call(Finish, outcome="done", result=b"42")).finish == "closed"
            assert (await held.call(Finish, outcome="done", result=b"42")).finish == "repeated"
        await eventually(lambda: len(shop.usage(task_id)) == 1)  # it is written by itself
        [usage] = shop.usage(task_id)
        assert (usage.state, usage.completion_tokens) == ("failed", generation.num_tokens)
        assert shop.running.deps.store.usage.open_reservations() == []
        assert shop.running.deps.workers.endings["done"] == 1


@pytest.mark.usefixtures("hasty_ledger")
async def test_whoever_could_not_end_a_task_still_hears_that_it_is_lost(redis: Server, tmp_path: Path) -> None:
    with open_shop(redis, tmp_path / "data", lease_s=LEASE_S) as shop:
        task_id = shop.submit()
        async with connected(shop.line()) as line:
            held = await leased(line)
            with line.heeding(held.lease.task, held.lease.delivery, held._order):
                with locked(shop.path), pytest.raises(LedgerUnavailable):
                    await held.call(Finish, outcome="done", result=b"42")
                await eventually(held.is_lost.is_set)
            await eventually(lambda: not any(shop.running.deps.workers.busy.values()))
            assert shop.task(task_id).state == "queued"
            again = await leased(line)
            assert (await again.call(Finish, outcome="done")).finish == "closed"
        endings = shop.running.deps.workers.endings
        assert (endings["lost"], endings["done"]) == (1, 1)


def test_an_engine_that_breaks_is_asked_again_and_no_candidate_is_blamed(redis: Server, tmp_path: Path) -> None:
    with open_shop(redis, tmp_path / "data", BrokenEngine(2)) as shop:
        task_id = shop.submit()
        with shop.worker():
            task = shop.closed(task_id)
        run = shop.run_of(task_id)
        assert (task.outcome, task.delivery, run.verdict.status) == ("done", 1, "verified")
        [attempt] = run.attempts
        assert (attempt.num_retries, [candidate.state for candidate in attempt.candidates]) == (2, ["passed"])
        retried = [event for event in shop.events(task_id) if isinstance(event, WorkRetried)]
        assert [(event.what, event.failure.code) for event in retried] == [("engine", "engine_failed")] * 2
        assert all("broke" not in message.content for message in attempt.messages)
        [usage] = shop.usage(task_id)
        assert usage.state == "completed"


def test_a_task_that_cannot_be_done_here_is_given_up_with_the_reason(redis: Server, tmp_path: Path) -> None:
    with open_shop(redis, tmp_path / "data", BrokenEngine(1000)) as shop:
        task_id = shop.submit(max_deliveries=2)
        with shop.worker():
            task = shop.closed(task_id, 90)
        assert (task.outcome, task.delivery) == ("dead", 2)
        assert "engine_failed: the engine broke while it decoded" in task.reason
        assert shop.do(shop.journal.result(task_id)) == b""


def test_a_sandbox_that_dies_costs_no_candidate(shop: Shop) -> None:
    program = replace(TASK, tests=replace(TASK.tests, code="import time\ntime.sleep(1.0)\nassert double(4) == 8"))
    task_id = shop.submit(program)
    with shop.worker():
        wait_for(lambda: _is_testing(shop), 30)
        sandbox = shop.running.deps.sandbox
        assert sandbox is not None
        assert sandbox.pid is not None
        os.kill(sandbox.pid, signal.SIGKILL)
        task = shop.closed(task_id)
    run = shop.run_of(task_id)
    assert (task.outcome, run.verdict.status) == ("done", "verified"), task.reason
    assert [candidate.state for attempt in run.attempts for candidate in attempt.candidates] == ["passed"]
    assert sum(attempt.num_retries for attempt in run.attempts) >= 1


def _is_testing(shop: Shop) -> bool:
    sandbox = shop.running.deps.sandbox
    assert sandbox is not None
    return sandbox.is_up and shop.do(sandbox.status()).running > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_redis_may_go_away_while_a_task_is_solved(shop: Shop, redis: Server, number: signal.Signals) -> None:
    task_id = shop.submit(replace(TASK, route=Route(k=1, max_attempts=2)))
    with shop.worker():
        at_work(shop, task_id)
        assert redis.process is not None
        redis.process.send_signal(number)
        redis.process.wait(20)
        time.sleep(0.5)
        redis.start()
        task = shop.closed(task_id, 90)
    assert task.outcome == "done", task.reason
    assert shop.run_of(task_id).verdict.status == "verified"
    assert [usage.state for usage in shop.usage(task_id)][-1] == "completed"


def test_a_worker_that_cannot_reach_its_server_goes_on_trying(shop: Shop, tmp_path: Path) -> None:
    process = shop.start_worker(socket=str(tmp_path / "nobody.sock"))
    wait_for(lambda: (shop.path / "workers.log").read_text().count("worker.not_connected") >= 3, 60)
    assert process.poll() is None
    process.terminate()
    assert process.wait(20) == 0
