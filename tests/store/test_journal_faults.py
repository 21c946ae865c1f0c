"""What the task journal does when Redis or the ledger goes away and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from atlas.directory import DataDirectory
from atlas.errors import LedgerUnavailable, LimitsUnavailable
from atlas.store import Journal, restore_backup, write_backup
from tests.ledgers import Cluster
from tests.store.journals import DONE, PAIRS, Journals, Place, Servers, history, leased, submission, submit

T = TypeVar("T")
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


async def sometime(work: Callable[[], Awaitable[T]], timeout_s: float = 20.0) -> T:
    """Try until it is available."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(LimitsUnavailable, LedgerUnavailable):
            return await work()
        assert time.monotonic() < deadline_s, "timed out"
        await asyncio.sleep(0.02)


async def test_without_redis_nothing_is_submitted_or_handed_out_and_work_can_be_finished(own_journals: Journals) -> None:
    journal = await own_journals.open()
    task = await submit(journal)
    await submit(journal)
    lease = await leased(journal)
    own_journals.place.redis.kill()
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: journal.heartbeat(lease.delivery),
        lambda: journal.submit(submission(idempotency_key="k")),
        lambda: journal.lease("w", wait_s=5),
        lambda: journal.put_events(lease.delivery, b""),
    ]
    for attempt in attempts:
        with pytest.raises(LimitsUnavailable, match="tasks cannot be queued") as caught:
            await attempt()
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)
    assert journal.trouble
    assert len((await journal.list()).tasks) == 2
    assert await journal.put_step(lease.delivery, "s", b"r")
    assert await journal.finish(lease.delivery, DONE) == "closed"
    assert await history(journal, task.id) == [(2**53 - 1, b"done")]


async def test_when_redis_is_back_workers_keep_their_tasks_and_the_rest_is_handed_out(own_journals: Journals) -> None:
    journal = await own_journals.open(lease_s=5.0)
    made = [await submit(journal) for _ in range(4)]
    held, done = await leased(journal), await leased(journal)
    own_journals.place.redis.kill()
    with pytest.raises(LimitsUnavailable):
        await journal.heartbeat(held.delivery)
    assert await journal.finish(done.delivery, DONE) == "closed"
    assert (await journal.cancel(made[3].id)).outcome == "cancelled"
    own_journals.place.redis.start()
    assert await sometime(lambda: journal.heartbeat(held.delivery)) == "held"
    assert journal.trouble == ""
    assert (await leased(journal)).task.id == made[2].id
    assert await journal.lease("w") is None
    assert await journal.finish(held.delivery, DONE) == "closed"


@pytest.mark.parametrize("how", ["killed", "stopped", "emptied"])
async def test_event_numbers_go_on_above_those_that_were_told(own_journals: Journals, how: str) -> None:
    journal = await own_journals.open(lease_s=5.0)
    task = await submit(journal)
    lease = await leased(journal)
    numbers = [await journal.put_events(lease.delivery, b"%d" % number) for number in range(3)]
    redis = own_journals.place.redis
    assert redis.process is not None
    if how == "stopped":
        redis.process.send_signal(signal.SIGTERM)
        redis.process.wait(60)
    else:
        redis.kill()
    if how == "emptied":
        redis.lose_data()
    redis.start()
    last = await sometime(lambda: journal.put_events(lease.delivery, b"3"))
    assert numbers == [1, 2, 3]
    assert last is not None
    assert last > 3
    await journal.finish(lease.delivery, DONE)
    bodies = [body for _, body in await history(journal, task.id)]
    assert bodies == [b"3", b"done"] if how == "emptied" else [b"0", b"1", b"2", b"3", b"done"]


async def test_a_redis_with_another_servers_past_is_put_right(own_journals: Journals) -> None:
    """An old append-only file: what it says about tasks that have moved on since does not count."""
    journal = await own_journals.open(lease_s=5.0)
    first, second = await submit(journal), await submit(journal)
    redis = own_journals.place.redis
    redis.keep_copy()
    lease = await leased(journal)
    assert lease.task.id == first.id
    await journal.finish(lease.delivery, DONE)
    held = await leased(journal)
    third = await submit(journal)
    redis.kill()
    redis.restore_copy()
    redis.start()
    assert await sometime(lambda: journal.heartbeat(held.delivery)) == "held"
    assert (await leased(journal)).task.id == third.id
    assert await journal.lease("w") is None
    assert held.task.id == second.id


async def test_a_task_submitted_just_before_redis_died_is_not_lost(own_journals: Journals) -> None:
    """Killed between the row and its entry: the row is the truth, and the client has been told of it."""
    journal = await own_journals.open()
    await journal.reconcile()
    redis = own_journals.place.redis
    assert redis.process is not None
    redis.process.send_signal(signal.SIGSTOP)
    submitted = await journal.submit(submission())  # in the ledger; Redis did not answer within a second
    assert submitted.task.state == "queued"
    redis.kill()
    redis.lose_data()
    redis.start()
    lease = await sometime(lambda: journal.lease("w", wait_s=5))
    assert lease is not None
    assert lease.task.id == submitted.task.id


async def test_a_worker_that_waited_through_an_outage_of_redis_gets_what_comes_then(own_journals: Journals) -> None:
    journal = await own_journals.open()
    waiting = asyncio.create_task(journal.lease("w", wait_s=30))
    await asyncio.sleep(0.1)
    own_journals.place.redis.kill()
    own_journals.place.redis.start()
    await sometime(lambda: submit(journal))
    assert await asyncio.wait_for(waiting, 30) is not None


async def test_while_the_ledger_is_away_nothing_is_handed_out_and_nothing_is_lost(
    directory: DataDirectory, cluster: Cluster, redis_servers: Servers
) -> None:
    redis = redis_servers.get(next(iter(PAIRS.values()))[1])
    journals = Journals(Place(directory, cluster.url, redis))
    journal = await journals.open(lease_s=2.0)
    task = await submit(journal)
    other = await submit(journal)
    held = await leased(journal)
    cluster.kill()
    for attempt in (journal.lease("w"), journal.finish(held.delivery, DONE), submit(journal)):
        with pytest.raises(LedgerUnavailable):
            await attempt
    cluster.start()
    assert await sometime(lambda: journal.finish(held.delivery, DONE)) == "closed"
    lease = await sometime(lambda: journal.lease("w", wait_s=10))
    assert lease is not None
    assert lease.task.id == other.id
    assert (await journal.get(task.id)).outcome == "done"
    await journals.close()


async def test_a_backup_holds_the_journal(journals: Journals, journal: Journal) -> None:
    if journals.place.ledger_url:
        pytest.skip("test_backup.py restores PostgreSQL; the tables are no different")
    long = b"long" * 100_000
    closed = await submit(journal, body=long, idempotency_key="k")
    await journal.finish((await leased(journal)).delivery, DONE)
    waiting = await submit(journal)
    directory = journals.place.directory
    target = DataDirectory(directory.path.parent / "restored")
    write_backup(directory, directory.path.parent / "backup.tar")
    restore_backup(directory.path.parent / "backup.tar", target)
    target.hold()
    copies = Journals(Place(target, "", journals.place.redis))
    copy = await copies.open()
    assert await copy.request(closed.id) == long
    assert await copy.result(closed.id) == b"42"
    assert not (await copy.submit(submission(body=long, idempotency_key="k"))).is_new
    assert (await leased(copy)).task.id == waiting.id
    await copies.close()
    target.release()


async def test_no_journal_is_left_waiting_when_it_is_closed(journals: Journals) -> None:
    journal: Journal = await journals.open()
    await submit(journal)
    began_s = time.monotonic()
    await journals.close()
    assert time.monotonic() - began_s < 20
