"""What the task journal keeps and tells: steps, corrections, events, lists, and what Redis is put right from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from atlas.errors import BadRequest, Conflict, LedgerUnavailable, NotFound
from atlas.store import LAST_NUMBER, Ending, Journal, TaskClosed, TaskFilter
from atlas.store.journal_values import DAY_S
from atlas.store.tables import tasks
from atlas.store.tasks_blobs import INLINE_BYTES, ORPHAN_AGE_S
from atlas.store.tasks_queue import EVENT_INLINE_BYTES, MAX_EVENTS
from tests.store.conftest import Clock
from tests.store.journals import DONE, Journals, all_of, do, history, leased, submit

LONG = b"long " * INLINE_BYTES


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # nobody rings for it
            await asyncio.sleep(0.001)


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
        assert await journal.put_events(lease.delivery, body) == number
    await journal.finish(lease.delivery, DONE)
    told = [(1, b"one"), (2, big), (3, b"three"), (LAST_NUMBER, b"done")]
    for after in range(4):
        assert await history(journal, task.id, after=after) == told[after:]
    assert await history(journal, task.id, after=LAST_NUMBER) == []


async def test_events_that_are_told_together_are_numbered_one_by_one(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    big = b"x" * (EVENT_INLINE_BYTES + 1)
    assert await journal.put_events(lease.delivery, b"one", big, b"three") == 3
    assert await journal.put_events(lease.delivery, b"four") == 4
    await journal.finish(lease.delivery, DONE)
    assert (await history(journal, task.id))[:-1] == [(1, b"one"), (2, big), (3, b"three"), (4, b"four")]


async def test_followers_hear_of_each_event_when_it_happens(journal: Journal) -> None:
    task = await submit(journal)
    heard: list[asyncio.Queue[int]] = [asyncio.Queue(), asyncio.Queue()]

    async def follow(queue: asyncio.Queue[int]) -> None:
        async for event in journal.events(task.id):
            queue.put_nowait(event.number)

    followers = [asyncio.create_task(follow(queue)) for queue in heard]
    lease = await leased(journal)
    for number in range(1, 6):
        await journal.put_events(lease.delivery, b"")
        assert [await asyncio.wait_for(queue.get(), 30) for queue in heard] == [number] * 2
    await journal.finish(lease.delivery, DONE)
    assert [await asyncio.wait_for(queue.get(), 30) for queue in heard] == [LAST_NUMBER] * 2
    await asyncio.wait_for(asyncio.gather(*followers), 30)


async def test_who_waits_for_the_end_is_told_it_with_the_result_and_asks_no_ledger(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    following = asyncio.create_task(all_of(journal.events(task.id)))
    await until(lambda: task.id in journal._keeper.news._waiting)
    await until(lambda: not journal._keeper._under_way)

    def refuse(*_: object) -> None:
        raise AssertionError("the ledger was read")

    for name in ("get", "body"):
        monkeypatch.setattr(journal._keeper.book, name, refuse)
    await journal.finish(lease.delivery, DONE)
    [closed] = await asyncio.wait_for(following, 30)
    assert isinstance(closed, TaskClosed)
    assert (closed.task.outcome, closed.task.closed_by, closed.result) == ("done", 1, b"42")


async def test_a_long_result_is_not_kept_for_who_waits(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    following = asyncio.create_task(all_of(journal.events(task.id)))
    await until(lambda: task.id in journal._keeper.news._waiting)
    await journal.finish(lease.delivery, Ending(outcome="done", result=LONG))
    [closed] = await asyncio.wait_for(following, 30)
    assert isinstance(closed, TaskClosed)
    assert (closed.task.outcome, closed.result) == ("done", None)
    assert await journal.result(task.id) == LONG


async def test_the_last_events_come_with_the_end_and_before_it(journal: Journal) -> None:
    for _ in range(5):
        task = await submit(journal)
        lease = await leased(journal)
        following = asyncio.create_task(all_of(journal.events(task.id)))
        await until(lambda: task.id in journal._keeper.news._waiting)  # noqa: B023  # it is awaited here
        await journal.put_events(lease.delivery, b"first")
        assert await journal.finish(lease.delivery, DONE, events=(b"last but one", LONG)) == "closed"
        assert [event.number for event in await asyncio.wait_for(following, 30)] == [1, 2, 3, LAST_NUMBER]
        assert [body for _, body in await history(journal, task.id)] == [b"first", b"last but one", LONG, b"done"]
    assert await journal.finish(lease.delivery, DONE, events=(b"once more",)) == "repeated"
    assert len(await history(journal, task.id)) == 4


async def test_a_task_that_the_ledger_has_lost_is_followed_by_nobody(journal: Journal) -> None:
    task = await submit(journal)
    following = asyncio.create_task(all_of(journal.events(task.id)))
    await until(lambda: task.id in journal._keeper.news._waiting)
    journal._keeper.book._ledger.write(lambda connection: connection.execute(tasks.delete())).result()
    assert await journal.lease("w") is None  # which finds an entry without a row
    with pytest.raises(NotFound, match="no task"):
        await asyncio.wait_for(following, 30)


async def test_what_is_beside_an_ending_is_waited_for_and_its_failure_is_raised(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    written: list[str] = []

    async def late() -> None:
        await asyncio.sleep(0.1)
        written.append("late")

    async def failing() -> None:
        raise LedgerUnavailable("the disk is full")

    with pytest.raises(LedgerUnavailable, match="the disk is full"):
        await journal.finish(lease.delivery, DONE, beside=failing)
    assert await journal.finish(lease.delivery, DONE, beside=late) == "repeated"
    assert written == ["late"]
    assert (await journal.get(task.id)).outcome == "done"


async def test_a_stream_is_bounded_and_its_numbers_go_on(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    last = 0
    for _ in range(0, MAX_EVENTS + 50, 50):
        numbers = await asyncio.gather(*(journal.put_events(lease.delivery, b"") for _ in range(50)))
        last = numbers[-1] or 0
    await journal.finish(lease.delivery, DONE)
    events = await all_of(journal.events(task.id))
    assert len(events) == MAX_EVENTS + 1
    assert [event.number for event in events[:-1]] == list(range(last - MAX_EVENTS + 1, last + 1))


async def test_when_its_events_are_gone_the_end_is_still_told(journal: Journal) -> None:
    task = await submit(journal)
    lease = await leased(journal)
    await journal.put_events(lease.delivery, b"one")
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
    await journal.put_events(lease.delivery, b"before")
    journal = await journals.open()
    await journal.reconcile()
    assert await journal.heartbeat(lease.delivery) == "held"
    assert (await journal.put_events(lease.delivery, b"after") or 0) > 1
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
    for say in (journal.heartbeat, lambda delivery: journal.put_events(delivery, b"e")):
        await redis.call("DEL", f"{prefix}t:{task.id}", f"{prefix}leases")
        assert await say(lease.delivery)
        assert await journal.heartbeat(lease.delivery) == "held"
    assert await journal.finish(lease.delivery, DONE) == "closed"
