"""What the task journal promises, on ledgers and Redis servers of both kinds."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import sqlalchemy as sa

from atlas.errors import BadRequest, BudgetExhausted, Conflict, NotFound, RateLimited
from atlas.store import (
    LAST_NUMBER,
    Delivery,
    Ending,
    Journal,
    Lease,
    Quota,
    TaskFilter,
)
from atlas.store.journal_values import DAY_S
from atlas.store.tables import tasks
from atlas.store.tasks_blobs import INLINE_BYTES, ORPHAN_AGE_S
from atlas.store.tasks_queue import EVENT_INLINE_BYTES, MAX_EVENTS
from tests.store.conftest import Clock
from tests.store.journals import DONE, LEASE_S, Journals, all_of, do, history, leased, submission, submit

LONG = b"long " * INLINE_BYTES


async def lose(journal: Journal, lease: Lease) -> None:
    """Wait until the lease has been found to be over."""
    assert await asyncio.wait_for(journal.until_stopped(lease.delivery), 10) == "lost"


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
    began_s = time.monotonic()
    await submit(journal)
    assert await asyncio.wait_for(waiting, 5) is not None
    assert time.monotonic() - began_s < 0.5
    assert num_asked == 2


async def test_waiting_ends_when_it_was_said_to(journal: Journal) -> None:
    began_s = time.monotonic()
    assert await journal.lease("w", wait_s=0.3) is None
    assert 0.3 <= time.monotonic() - began_s < 2


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
    await journal.put_event(late.delivery, b"first")
    later = await leased(journal, "second", wait_s=10)
    assert (later.task.id, later.delivery.number) == (task.id, 2)
    assert await journal.heartbeat(late.delivery) == "lost"
    assert await journal.put_event(late.delivery, b"late") is None
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
    for _ in range(10):
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
    assert 0.35 <= time.monotonic() - began_s < 3
    assert again.delivery.number == 2
    assert again.task.reason == "busy"


async def test_a_task_may_be_submitted_for_later(journal: Journal) -> None:
    await submit(journal, delay_s=0.4)
    began_s = time.monotonic()
    assert await journal.lease("w") is None
    assert await journal.lease("w", wait_s=10) is not None
    assert time.monotonic() - began_s >= 0.35


@pytest.mark.parametrize("pause_s", [0.0, 0.001, 0.002, 0.004, 0.008])
async def test_a_lease_that_nobody_waits_for_any_more_is_given_back(journal: Journal, pause_s: float) -> None:
    """A worker's connection may break while its task is on the way to it."""
    task = await submit(journal, max_deliveries=1)
    asking = asyncio.create_task(journal.lease("gone", wait_s=5))
    await asyncio.sleep(pause_s)
    was_told = not asking.cancel()
    results = await asyncio.gather(asking, return_exceptions=True)
    if was_told:
        assert isinstance(results[0], Lease)
        return
    lease = await leased(journal, wait_s=LEASE_S / 2)  # sooner than a lost lease would come back
    assert lease.task.id == task.id
    assert await journal.finish(lease.delivery, DONE) == "closed"


async def test_a_submission_nobody_waits_for_any_more_is_handed_out(journal: Journal) -> None:
    await journal.reconcile()
    for pause_s in (0.0, 0.001, 0.002, 0.004):
        submitting = asyncio.create_task(submit(journal))
        await asyncio.sleep(pause_s)
        submitting.cancel()
        await asyncio.gather(submitting, return_exceptions=True)
    await asyncio.sleep(0.1)
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
    assert await asyncio.wait_for(stopped, LEASE_S / 2) == "cancelled"
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
    await asyncio.wait_for(all_of(journal.events(task.id)), 10)
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
    events = await asyncio.wait_for(all_of(journal.events(task.id)), 10)
    assert [event.number for event in events] == [LAST_NUMBER]
    assert (await journal.get(task.id)).outcome == "expired"


async def test_a_lost_task_is_not_tried_again_after_its_deadline(journal: Journal) -> None:
    task = await submit(journal, deadline=time.time() + 0.3)
    await lose(journal, await leased(journal))
    assert (await journal.get(task.id)).outcome == "expired"


# -- steps, corrections ----------------------------------------------------------------------------------------------------


async def test_finished_steps_are_found_by_the_next_delivery(journal: Journal) -> None:
    task = await submit(journal)
    first = await leased(journal)
    assert await journal.put_step(first.delivery, "parse", b"tree")
    assert await journal.put_step(first.delivery, "embed", LONG)
    assert await journal.put_step(first.delivery, "parse", b"another tree")
    await journal.give_back(first.delivery, reason="stopped")
    second = await leased(journal)
    assert await journal.steps(task.id) == {"parse": b"tree", "embed": LONG}
    assert await journal.put_step(second.delivery, "store", b"")
    assert list(await journal.steps(task.id)) == ["parse", "embed", "store"]
    with pytest.raises(BadRequest, match="1 to 200"):
        await journal.put_step(second.delivery, "", b"")


async def test_a_correction_stands_beside_the_result(journal: Journal) -> None:
    task = await submit(journal)
    with pytest.raises(Conflict, match="is queued; a result can be corrected when there is one"):
        await journal.accept(task.id, b"mine")
    await do(journal)
    assert await journal.accepted(task.id) == b""
    assert (await journal.accept(task.id, b"mine", owner="usr_a")).accepted_at is not None
    assert await journal.accepted(task.id) == b"mine"
    await journal.accept(task.id, LONG)
    assert await journal.accepted(task.id) == LONG
    assert await journal.result(task.id) == b"42"


# -- events ----------------------------------------------------------------------------------------------------------------


async def test_events_are_numbered_and_replayed_from_any_of_them(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    big = b"x" * (EVENT_INLINE_BYTES + 1)
    for number, body in enumerate((b"one", big, b"three"), 1):
        assert await journal.put_event(lease.delivery, body) == number
    await journal.finish(lease.delivery, DONE)
    told = [(1, b"one"), (2, big), (3, b"three"), (LAST_NUMBER, b"done")]
    for after in range(4):
        assert await history(journal, task.id, after=after) == told[after:]
    assert await history(journal, task.id, after=LAST_NUMBER) == []


async def test_followers_hear_of_each_event_when_it_happens(journal: Journal) -> None:
    task = await submit(journal)
    heard: list[asyncio.Queue[int]] = [asyncio.Queue(), asyncio.Queue()]

    async def follow(queue: asyncio.Queue[int]) -> None:
        async for event in journal.events(task.id):
            queue.put_nowait(event.number)

    followers = [asyncio.create_task(follow(queue)) for queue in heard]
    lease = await leased(journal)
    for number in range(1, 6):
        await journal.put_event(lease.delivery, b"")
        assert [await asyncio.wait_for(queue.get(), 2) for queue in heard] == [number] * 2
    await journal.finish(lease.delivery, DONE)
    assert [await asyncio.wait_for(queue.get(), 2) for queue in heard] == [LAST_NUMBER] * 2
    await asyncio.wait_for(asyncio.gather(*followers), 2)


async def test_a_stream_is_bounded_and_its_numbers_go_on(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    last = 0
    for _ in range(0, MAX_EVENTS + 50, 50):
        numbers = await asyncio.gather(*(journal.put_event(lease.delivery, b"") for _ in range(50)))
        last = numbers[-1] or 0
    await journal.finish(lease.delivery, DONE)
    events = await all_of(journal.events(task.id))
    assert len(events) == MAX_EVENTS + 1
    assert [event.number for event in events[:-1]] == list(range(last - MAX_EVENTS + 1, last + 1))


async def test_when_its_events_are_gone_the_end_is_still_told(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    await journal.put_event(lease.delivery, b"one")
    await journal.finish(lease.delivery, DONE)
    redis = journal._keeper.queue._redis._redis
    stream = f"{journal._keeper.queue._prefix}e:{task.id}"
    assert 0 < await redis.call("TTL", stream) <= 900
    await redis.call("DEL", stream)
    assert await history(journal, task.id) == [(LAST_NUMBER, b"done")]


# -- lists, counts, cleaning up --------------------------------------------------------------------------------------------


async def test_tasks_are_listed_newest_first_in_pages_and_filtered(journals: Journals, clock: Clock) -> None:
    journal = await journals.open(clock=clock)
    made = []
    for number in range(7):
        made.append(await submit(journal, owner=f"usr_{number % 2}", kind="bench" if number == 3 else "solve"))
        clock.advance(0.0 if number == 4 else 1.0)  # two of the same time
    newest_first = sorted(made, key=lambda task: (-task.created_at, task.id), reverse=False)
    pages, cursor = [], ""
    while True:
        page = await journal.list(limit=3, cursor=cursor)
        pages.append(page.tasks)
        cursor = page.cursor
        if not cursor:
            break
    assert [len(page) for page in pages] == [3, 3, 1]
    assert {task.id for page in pages for task in page} == {task.id for task in made}
    listed = [task.created_at for page in pages for task in page]
    assert listed == [task.created_at for task in newest_first]

    async def ids(**wanted: Any) -> set[str]:
        return {task.id for task in (await journal.list(TaskFilter(**wanted))).tasks}

    assert await ids(owner="usr_1") == {made[n].id for n in (1, 3, 5)}
    assert await ids(kind="bench") == {made[3].id}
    assert await ids(since=made[6].created_at) == {made[6].id}
    closed = await do(journal)
    assert await ids(state="closed") == await ids(outcome="done") == {closed.task_id}
    assert len(await ids(state="queued", owner="usr_0")) == 3
    with pytest.raises(BadRequest, match="cursor"):
        await journal.list(cursor="nonsense")


async def test_counts_say_what_waits_runs_and_has_ended(journals: Journals, clock: Clock) -> None:
    journal = await journals.open(clock=clock)
    await submit(journal, priority=0)
    await submit(journal, priority=0)
    await submit(journal, priority=0, owner="usr_b")
    await submit(journal, priority=2)
    await do(journal)
    await journal.heartbeat((await leased(journal)).delivery)
    clock.advance(10)
    stats = await journal.stats()
    assert (stats.queued, stats.running, stats.leased, stats.outcomes) == ((1, 0, 1), 1, 0, {"done": 1})
    assert stats.oldest_queued_s == 10
    assert sum((await journal.stats(owner="usr_b")).queued) <= 1
    assert (await journal.stats(kind="bench")).oldest_queued_s == 0


async def test_closed_tasks_are_deleted_when_their_time_has_come(journals: Journals, clock: Clock) -> None:
    journal = await journals.open(clock=clock)
    waiting = await submit(journal, delay_s=DAY_S, result_ttl_s=10)
    short = await submit(journal, body=LONG, result_ttl_s=10)
    lease = await leased(journal)
    await journal.put_step(lease.delivery, "s", LONG)
    await journal.finish(lease.delivery, DONE)
    kept = await submit(journal, body=LONG, result_ttl_s=1000)
    await do(journal)
    assert await journal.prune() == 0
    clock.advance(11)
    assert await journal.prune() == 1
    left = {task.id for task in (await journal.list()).tasks}
    assert left == {waiting.id, kept.id}
    folder = journals.place.directory.path / "blobs" / "tasks"
    assert (folder / short.id).is_dir()  # a backup may be reading
    journal._blobs._orphans[short.id] -= ORPHAN_AGE_S
    await journal.prune()
    assert {path.name for path in folder.iterdir()} == {kept.id}
    assert await journal.request(kept.id) == LONG


# -- reconciling -----------------------------------------------------------------------------------------------------------


async def test_the_next_server_goes_on_where_the_last_one_stopped(journals: Journals) -> None:
    journal = await journals.open()
    waiting, running = await submit(journal, priority=2), await submit(journal, priority=0)
    lease = await leased(journal)
    assert lease.task.id == running.id
    await journal.put_event(lease.delivery, b"before")
    journal = await journals.open()
    await journal.reconcile()
    assert await journal.heartbeat(lease.delivery) == "held"
    assert (await journal.put_event(lease.delivery, b"after") or 0) > 1
    assert (await leased(journal)).task.id == waiting.id
    assert await journal.finish(lease.delivery, DONE) == "closed"
    assert [body for _, body in await history(journal, running.id)] == [b"before", b"after", b"done"]


async def test_rows_that_redis_lacks_are_put_back_and_entries_without_rows_are_dropped(
    journal: Journal, journals: Journals
) -> None:
    keep, drop = await submit(journal), await submit(journal, owner="usr_0")
    journals.store.tasks._ledger.write(
        lambda connection: connection.execute(tasks.delete().where(tasks.c.id == drop.id))
    ).result()
    redis, prefix = journal._keeper.queue._redis._redis, journal._keeper.queue._prefix
    await redis.call("DEL", f"{prefix}t:{keep.id}", f"{prefix}q:solve:1:usr_a", f"{prefix}n:solve:1")
    await journal.reconcile()
    assert (await leased(journal)).task.id == keep.id
    assert await journal.lease("w") is None


async def test_an_entry_that_is_wrong_is_put_right_when_it_is_met(journal: Journal, journals: Journals) -> None:
    """Without a reconciliation: what Redis hands out counts only once the ledger has confirmed it."""

    def write(task_id: str, **values: Any) -> None:
        query = tasks.update().where(tasks.c.id == task_id).values(**values)
        journals.store.tasks._ledger.write(lambda connection: connection.execute(query)).result()

    closed, deleted, ahead, well = [await submit(journal) for _ in range(4)]
    write(closed.id, state="closed", outcome="done")
    write(ahead.id, delivery=7)
    journals.store.tasks._ledger.write(
        lambda connection: connection.execute(sa.delete(tasks).where(tasks.c.id == deleted.id))
    ).result()
    got = [await leased(journal), await leased(journal)]
    assert {lease.task.id: lease.delivery.number for lease in got} == {ahead.id: 8, well.id: 1}
    assert await journal.lease("w") is None


async def test_a_held_task_that_redis_has_forgotten_is_still_held(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    redis, prefix = journal._keeper.queue._redis._redis, journal._keeper.queue._prefix
    for say in (journal.heartbeat, lambda delivery: journal.put_event(delivery, b"e")):
        await redis.call("DEL", f"{prefix}t:{task.id}", f"{prefix}leases")
        assert await say(lease.delivery)
        assert await journal.heartbeat(lease.delivery) == "held"
    assert await journal.finish(lease.delivery, DONE) == "closed"
