"""What the task journal promises, on ledgers and Redis servers of both kinds."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from atlas.errors import BadRequest, BudgetExhausted, Conflict, NotFound, RateLimited
from atlas.store import LAST_NUMBER, Delivery, Ending, Journal, Lease, Quota
from atlas.store.tasks_blobs import INLINE_BYTES
from tests.store.conftest import Clock
from tests.store.journals import DONE, LEASE_S, Journals, all_of, do, history, leased, submission, submit

LONG = b"long " * INLINE_BYTES


async def lose(journal: Journal, lease: Lease) -> None:
    """Wait until the lease has been found to be over."""
    assert await asyncio.wait_for(journal.until_stopped(lease.delivery), 30) == "lost"


# -- one task's life -------------------------------------------------------------------------------------------------------


async def test_a_task_is_submitted_leased_run_and_closed(journal: Journal) -> None:
    task = await submit(journal, body=b"solve it", key_id="key_a", priority=0)
    assert (task.state, task.delivery, task.priority) == ("queued", 0, 0)
    lease = await leased(journal)
    assert (lease.task.id, lease.body, lease.delivery.number) == (task.id, b"solve it", 1)
    assert (await journal.get(task.id)).state == "leased"
    assert await journal.heartbeat(lease.delivery) == "held"
    assert (await journal.get(task.id)).state == "running"
    assert await journal.finish(lease.delivery, DONE) == "closed"
    closed = await journal.get(task.id)
    assert (closed.state, closed.outcome, closed.closed_by, closed.worker) == ("closed", "done", 1, "w1")
    assert await journal.result(task.id) == b"42"
    assert await journal.request(task.id) == b"solve it"
    assert await journal.lease("w2") is None


async def test_a_finish_may_be_repeated_and_changes_nothing(journal: Journal) -> None:
    task = await submit(journal)
    delivery = await do(journal)
    assert await journal.finish(delivery, Ending(outcome="failed", result=b"other", sandbox_s=9)) == "repeated"
    assert await journal.result(task.id) == b"42"
    assert (await journal.get(task.id)).outcome == "done"
    assert await journal.sandbox_s("usr_a") == 1.5
    assert (await journal.stats()).num_fenced == 0


async def test_long_bodies_are_kept_as_files_of_the_task(journal: Journal, journals: Journals) -> None:
    task = await submit(journal, body=LONG)
    lease = await leased(journal)
    assert lease.body == LONG
    await journal.finish(lease.delivery, Ending(outcome="done", result=LONG + b"!"))
    assert await journal.result(task.id) == LONG + b"!"
    files = list((journals.place.directory.path / "blobs" / "tasks" / task.id).iterdir())
    assert len(files) == 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


async def test_a_worker_cannot_name_a_file_elsewhere(journal: Journal, journals: Journals) -> None:
    evil = Delivery(task_id="../../evil", number=1)
    for attempt in (
        journal.finish(evil, Ending(outcome="done", result=LONG)),
        journal.put_events(evil, LONG),
        journal.put_step(evil, "s", LONG),
    ):
        with pytest.raises(BadRequest, match="not the id of a task"):
            await attempt
    assert not list(journals.place.directory.path.parent.rglob("evil"))


async def test_what_is_not_there_is_not_found(journal: Journal) -> None:
    task = await submit(journal)
    for attempt in (
        journal.get("task_none"),
        journal.get(task.id, owner="usr_b"),
        journal.cancel(task.id, owner="usr_b"),
        journal.accept(task.id, b"", owner="usr_b"),
        journal.result("task_none"),
        all_of(journal.events("task_none")),
    ):
        with pytest.raises(NotFound, match="no task"):
            await attempt
    nothing = Delivery(task_id="task_none", number=1)
    assert await journal.finish(nothing, DONE) == "fenced"
    assert await journal.heartbeat(nothing) == "lost"
    assert not await journal.give_back(nothing, reason="")


async def test_values_out_of_range_are_refused(journal: Journal) -> None:
    wrong: list[dict[str, Any]] = [
        {"priority": 3},
        {"kind": "a:b"},
        {"kind": ""},
        {"idempotency_key": "k" * 201},
        {"idempotency_key": "a\n"},
        {"max_deliveries": 0},
        {"delay_s": -1.0},
        {"delay_s": float("inf")},
        {"result_ttl_s": float("nan")},
        {"deadline": float("nan")},
    ]
    for fields in wrong:
        with pytest.raises(BadRequest) as caught:
            await submit(journal, **fields)
        assert caught.value.param == next(iter(fields))
    assert (await journal.list()).tasks == ()


# -- idempotency and quotas ------------------------------------------------------------------------------------------------


async def test_one_key_and_body_of_an_owner_are_one_task(journal: Journal) -> None:
    first = await journal.submit(submission(idempotency_key="k"))
    again = await journal.submit(submission(idempotency_key="k"))
    other = await journal.submit(submission(idempotency_key="k", owner="usr_b"))
    assert first.is_new
    assert not again.is_new
    assert again.task.id == first.task.id
    assert other.is_new
    with pytest.raises(Conflict, match=f"task {first.task.id} .* another body"):
        await journal.submit(submission(idempotency_key="k", body=b"other"))
    await do(journal)
    assert (await journal.submit(submission(idempotency_key="k"))).task.outcome == "done"


async def test_submitted_many_times_at_once_it_is_still_one_task(journal: Journal) -> None:
    submitted = await asyncio.gather(*(journal.submit(submission(idempotency_key="k", body=LONG)) for _ in range(20)))
    assert sum(one.is_new for one in submitted) == 1
    assert len({one.task.id for one in submitted}) == 1
    await do(journal)
    assert await journal.lease("w") is None


async def test_tasks_without_a_key_are_all_different(journal: Journal) -> None:
    assert (await submit(journal)).id != (await submit(journal)).id


async def test_open_tasks_of_an_owner_are_bounded(journal: Journal) -> None:
    quota = Quota(open_tasks=3)
    results = await asyncio.gather(
        *(journal.submit(submission(idempotency_key=str(n)), quota) for n in range(10)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, RateLimited)]
    assert len(refused) == 7
    assert "3 tasks of this user are open, and 3 may be" in refused[0].message
    assert refused[0].retry_after_s
    await journal.submit(submission(owner="usr_b"), quota)
    taken = next(n for n, result in enumerate(results) if not isinstance(result, RateLimited))
    assert not (await journal.submit(submission(idempotency_key=str(taken)), quota)).is_new  # it is there already
    await do(journal)
    await do(journal)
    await journal.submit(submission(), quota)


async def test_sandbox_seconds_of_an_owner_and_day_are_bounded(journals: Journals, clock: Clock) -> None:
    journal = await journals.open(clock=clock)
    quota = Quota(sandbox_s_per_day=10.0)
    for _ in range(2):
        await journal.submit(submission(), quota)
        await do(journal, Ending(outcome="failed", sandbox_s=5.0))
    assert await journal.sandbox_s("usr_a") == 10.0
    with pytest.raises(BudgetExhausted, match=r"used 10 s of the sandbox today, and 10 s are allowed; it starts again") as caught:
        await journal.submit(submission(), quota)
    await journal.submit(submission(owner="usr_b"), quota)
    assert caught.value.retry_after_s is not None
    clock.advance(caught.value.retry_after_s + 1)
    await journal.submit(submission(), quota)
    assert await journal.sandbox_s("usr_a") == 0.0


# -- leases ----------------------------------------------------------------------------------------------------------------


async def test_a_worker_that_waits_is_woken_and_does_not_ask(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking again and again would be faster than being woken only if it were hot."""
    num_asked, queue = 0, journal._keeper.queue
    ask = queue.lease

    async def counted(kind: str) -> Any:
        nonlocal num_asked
        num_asked += 1
        return await ask(kind)

    monkeypatch.setattr(queue, "lease", counted)
    waiting = asyncio.create_task(journal.lease("w", wait_s=20))
    await asyncio.sleep(1.0)
    assert num_asked == 1
    await submit(journal)
    assert await asyncio.wait_for(waiting, 8) is not None
    assert num_asked == 2


async def test_waiting_ends_when_it_was_said_to(journal: Journal) -> None:
    began_s = time.monotonic()
    assert await journal.lease("w", wait_s=0.3) is None
    assert 0.3 <= time.monotonic() - began_s < 20


async def test_each_task_goes_to_one_of_many_workers(journal: Journal) -> None:
    waiting = [asyncio.create_task(journal.lease(f"w{n}", wait_s=5)) for n in range(10)]
    made = {(await submit(journal)).id for _ in range(10)}
    got = [lease.task.id for lease in await asyncio.gather(*waiting) if lease]
    assert len(got) == 10
    assert set(got) == made


async def test_workers_get_the_kinds_they_ask_for(journal: Journal) -> None:
    bench = await submit(journal, kind="bench")
    assert await journal.lease("w") is None
    lease = await journal.lease("w", kind="bench")
    assert lease is not None
    assert lease.task.id == bench.id


async def test_a_lost_lease_is_taken_over_and_its_late_result_is_counted_not_stored(journal: Journal) -> None:
    task = await submit(journal)
    late = await leased(journal, "stopped")
    await journal.put_events(late.delivery, b"first")
    later = await leased(journal, "second", wait_s=10)
    assert (later.task.id, later.delivery.number) == (task.id, 2)
    assert await journal.heartbeat(late.delivery) == "lost"
    assert await journal.put_events(late.delivery, b"late") is None
    assert not await journal.put_step(late.delivery, "s", b"late")
    assert not await journal.give_back(late.delivery, reason="late")
    assert await journal.finish(late.delivery, Ending(outcome="failed", result=b"late", sandbox_s=100)) == "fenced"
    assert await journal.heartbeat(later.delivery) == "held"
    assert await journal.finish(later.delivery, DONE) == "closed"
    assert await journal.finish(late.delivery, DONE) == "fenced"
    closed = await journal.get(task.id)
    assert (closed.outcome, closed.closed_by, closed.num_fenced, closed.worker) == ("done", 2, 2, "second")
    assert await journal.result(task.id) == b"42"
    assert await journal.sandbox_s("usr_a") == 1.5
    assert await journal.steps(task.id) == {}
    assert [body for _, body in await history(journal, task.id)] == [b"first", b"done"]
    assert (await journal.stats()).num_fenced == 2


async def test_a_lost_delivery_is_fenced_even_before_anybody_has_taken_over(journal: Journal) -> None:
    await submit(journal)
    lease = await leased(journal)
    await lose(journal, lease)
    assert await journal.finish(lease.delivery, DONE) == "fenced"
    assert (await leased(journal)).delivery.number == 2


async def test_a_worker_that_is_heard_of_keeps_its_task(journal: Journal) -> None:
    await submit(journal)
    lease = await leased(journal)
    for _ in range(5):
        assert await journal.heartbeat(lease.delivery) == "held"
        assert await journal.lease("other", wait_s=LEASE_S / 3) is None
    assert await journal.finish(lease.delivery, DONE) == "closed"


async def test_after_its_last_delivery_a_task_is_dead_and_says_why(journal: Journal) -> None:
    task = await submit(journal, max_deliveries=2)
    await journal.give_back((await leased(journal)).delivery, reason="the engine broke")
    await lose(journal, await leased(journal, wait_s=5))
    closed = await journal.get(task.id)
    assert (closed.state, closed.outcome, closed.closed_by) == ("closed", "dead", None)
    assert closed.reason == f"given up after 2 of 2 deliveries; the last: its worker was not heard of for {LEASE_S:g} s"
    assert await journal.lease("w") is None


async def test_excused_deliveries_do_not_count(journal: Journal) -> None:
    task = await submit(journal, max_deliveries=1)
    for number in (1, 2, 3):
        lease = await leased(journal)
        assert lease.delivery.number == number
        assert await journal.give_back(lease.delivery, reason="shutting down", is_excused=True)
    assert await journal.give_back((await leased(journal)).delivery, reason="no idea")
    assert (await journal.get(task.id)).outcome == "dead"


async def test_a_task_given_back_with_a_delay_comes_again_after_it(journal: Journal) -> None:
    await submit(journal)
    lease = await leased(journal)
    began_s = time.monotonic()
    assert await journal.give_back(lease.delivery, reason="busy", delay_s=0.4)
    assert await journal.lease("w") is None
    again = await leased(journal, wait_s=10)
    assert 0.35 <= time.monotonic() - began_s < 20
    assert again.delivery.number == 2
    assert again.task.reason == "busy"


async def test_a_task_may_be_submitted_for_later(journal: Journal) -> None:
    await submit(journal, delay_s=0.4)
    began_s = time.monotonic()
    assert await journal.lease("w") is None
    assert await journal.lease("w", wait_s=10) is not None
    assert time.monotonic() - began_s >= 0.35


@pytest.mark.parametrize("pause_s", [0.0, 0.001, 0.002, 0.004, 0.008])
async def test_a_lease_that_nobody_waits_for_any_more_is_given_back(journals: Journals, pause_s: float) -> None:
    """A worker's connection may break while its task is on the way to it."""
    journal = await journals.open(lease_s=60)
    task = await submit(journal, max_deliveries=1)
    asking = asyncio.create_task(journal.lease("gone", wait_s=5))
    await asyncio.sleep(pause_s)
    was_told = not asking.cancel()
    results = await asyncio.gather(asking, return_exceptions=True)
    if was_told:
        assert isinstance(results[0], Lease)
        return
    lease = await leased(journal, wait_s=20)  # long before a lost lease would come back
    assert lease.task.id == task.id
    assert await journal.finish(lease.delivery, DONE) == "closed"


async def test_a_submission_nobody_waits_for_any_more_is_handed_out(journal: Journal) -> None:
    await journal.reconcile()
    for pause_s in (0.0, 0.001, 0.002, 0.004):
        submitting = asyncio.create_task(submit(journal))
        await asyncio.sleep(pause_s)
        submitting.cancel()
        await asyncio.gather(submitting, return_exceptions=True)
    await asyncio.sleep(1.0)  # the ledger's writer goes on with what nobody waits for
    made = len((await journal.list()).tasks)
    for _ in range(made):
        await do(journal)
    assert await journal.lease("w") is None


# -- cancelling and deadlines ----------------------------------------------------------------------------------------------


async def test_a_waiting_task_is_cancelled_at_once(journal: Journal) -> None:
    waiting = await submit(journal)
    delayed = await submit(journal, delay_s=0.2)
    for task in (waiting, delayed):
        assert (await journal.cancel(task.id, reason="not needed")).outcome == "cancelled"
        assert (await journal.get(task.id)).reason == "not needed"
    assert await journal.lease("w", wait_s=0.4) is None


async def test_the_worker_of_a_running_task_is_told_to_stop(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    stopped = asyncio.create_task(journal.until_stopped(lease.delivery))
    await asyncio.sleep(0.05)
    assert (await journal.cancel(task.id)).state == "leased"
    assert await asyncio.wait_for(stopped, 30) == "cancelled"
    assert await journal.heartbeat(lease.delivery) == "cancelled"
    assert await journal.finish(lease.delivery, Ending(outcome="cancelled", reason="as asked")) == "closed"
    assert (await journal.cancel(task.id)).outcome == "cancelled"
    assert (await journal.get(task.id)).reason == "as asked"


async def test_a_result_that_is_there_before_the_worker_hears_of_it_stands(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    await journal.cancel(task.id)
    assert await journal.finish(lease.delivery, DONE) == "closed"
    assert (await journal.get(task.id)).outcome == "done"


async def test_a_cancelled_task_is_not_tried_again(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    await journal.cancel(task.id)
    assert await journal.until_stopped(lease.delivery) == "cancelled"
    await asyncio.wait_for(all_of(journal.events(task.id)), 30)
    assert await journal.until_stopped(lease.delivery) == "lost"
    closed = await journal.get(task.id)
    assert (closed.outcome, closed.reason) == ("cancelled", "cancelled by its owner")


async def test_a_task_whose_deadline_has_passed_is_not_begun(journal: Journal) -> None:
    overdue = await submit(journal, deadline=time.time() - 1)
    in_time = await submit(journal, deadline=time.time() + 60)
    assert (await leased(journal)).task.id == in_time.id
    closed = await journal.get(overdue.id)
    assert closed.outcome == "expired"
    assert closed.reason.startswith("its deadline, ")


async def test_a_deadline_ends_waiting_where_nobody_works(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.store.tasks_keeper.DEADLINES_EVERY_S", 0.0)
    task = await submit(journal, deadline=time.time() + 0.2)
    events = await asyncio.wait_for(all_of(journal.events(task.id)), 30)
    assert [event.number for event in events] == [LAST_NUMBER]
    assert (await journal.get(task.id)).outcome == "expired"


async def test_a_lost_task_is_not_tried_again_after_its_deadline(journal: Journal) -> None:
    task = await submit(journal, deadline=time.time() + 0.3)
    await lose(journal, await leased(journal))
    assert (await journal.get(task.id)).outcome == "expired"
