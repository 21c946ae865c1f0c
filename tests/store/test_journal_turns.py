"""Who is next: simulations on the real script, with tasks that the ledger never sees."""

from __future__ import annotations

import itertools
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas.store import Task
from atlas.store.live_link import Link
from atlas.store.tasks_queue import TaskQueue
from tests.store.journals import PAIRS, Servers

WEIGHTS = {0: 8, 1: 4, 2: 1}
FAIR_PART = 0.2  # of its fair share that p2 is promised


class Turns:
    """A queue, and what it hands out."""

    def __init__(self, url: str) -> None:
        self._ids = itertools.count()
        self._tasks: dict[str, Task] = {}
        self.queue = TaskQueue(
            Link(url, timeout_s=5.0), source=list, on_look=self._nothing, namespace=f"test{uuid.uuid4().hex[:8]}", lease_s=600
        )

    async def _nothing(self) -> None:
        """There is nothing to look after."""

    async def add(self, priority: int = 1, owner: str = "a", num: int = 1) -> None:
        for _ in range(num):
            number = next(self._ids)
            task = Task(
                id=f"task_{number}",
                owner=owner,
                key_id="",
                kind="solve",
                priority=priority,
                state="queued",
                created_at=time.time(),
                max_deliveries=1,
                result_ttl_s=1,
            )
            self._tasks[task.id] = task
            await self.queue.sync(task)

    async def next(self) -> Task | None:
        upcoming = await self.queue.lease("solve")
        return self._tasks[upcoming.delivery.task_id] if upcoming.delivery else None

    async def take(self, num: int) -> list[Task]:
        return [task for task in [await self.next() for _ in range(num)] if task]


@pytest.fixture(params=[redis for _, redis in PAIRS.values()])
async def turns(request: pytest.FixtureRequest, redis_servers: Servers) -> AsyncIterator[Turns]:
    turns = Turns(redis_servers.get(request.param).url)
    yield turns
    await turns.queue.close()


def priorities(tasks: Iterable[Task]) -> Counter[int]:
    return Counter(task.priority for task in tasks)


def owners(tasks: Iterable[Task]) -> str:
    return "".join(task.owner for task in tasks)


async def test_where_all_wait_classes_share_as_eight_to_four_to_one(turns: Turns) -> None:
    for priority in WEIGHTS:
        await turns.add(priority, num=200)
    assert priorities(await turns.take(130)) == {0: 80, 1: 40, 2: 10}


async def test_batch_gets_a_fifth_of_its_fair_share_under_a_stream_of_interactive_tasks(turns: Turns) -> None:
    """p0 arrive faster than they are served, and the first of p2 does not wait for long either."""
    await turns.add(0, num=50)
    await turns.take(20)
    await turns.add(2, num=100)
    served: list[Task] = []
    for _ in range(360):
        await turns.add(0, num=2)
        served += await turns.take(1)
    fair = len(served) / 2
    assert priorities(served)[2] >= FAIR_PART * fair
    assert priorities(served)[2] == 40
    assert [task.priority for task in served].index(2) <= 8


async def test_batch_gets_its_part_of_a_stream_that_leaves_no_backlog(turns: Turns) -> None:
    await turns.add(2, num=100)
    served: list[Task] = []
    for _ in range(300):
        await turns.add(0)
        served += await turns.take(1)
    assert priorities(served)[2] >= FAIR_PART * len(served) / 2


async def test_batch_gets_a_fifth_of_a_third_beside_both_others(turns: Turns) -> None:
    served: list[Task] = []
    for _ in range(390):
        for priority in WEIGHTS:
            await turns.add(priority)
        served += await turns.take(1)
    assert priorities(served)[2] >= FAIR_PART * len(served) / 3


async def test_an_interactive_task_passes_a_backlog_of_batch_tasks(turns: Turns) -> None:
    await turns.add(2, num=100)
    await turns.take(30)
    for _ in range(5):
        await turns.add(0)
        assert priorities(await turns.take(2)) == {0: 1, 2: 1}


async def test_a_class_does_not_save_up_turns_while_it_has_no_tasks(turns: Turns) -> None:
    await turns.add(0, num=300)
    await turns.take(200)
    await turns.add(2, num=50)
    assert priorities(await turns.take(18)) == {0: 16, 2: 2}


async def test_owners_take_turns(turns: Turns) -> None:
    await turns.add(owner="a", num=50)
    await turns.add(owner="b", num=3)
    assert owners(await turns.take(10)) in ("abababaaaa", "aababab" + "aaa")
    await turns.add(owner="c", num=20)
    assert sorted(Counter(owners(await turns.take(20))).items()) == [("a", 10), ("c", 10)]


async def test_who_was_away_gets_no_more_than_the_others_afterwards(turns: Turns) -> None:
    await turns.add(owner="a", num=200)
    await turns.add(owner="b")
    await turns.take(100)
    await turns.add(owner="b", num=100)
    share = Counter(owners(await turns.take(40)))
    assert abs(share["a"] - share["b"]) <= 1


async def test_who_comes_and_goes_gets_no_more_than_the_others(turns: Turns) -> None:
    """b always has one task waiting and adds the next when it has been served: no queue of its own to remember it by."""
    await turns.add(owner="a", num=200)
    served = ""
    for _ in range(60):
        if not served.endswith("a") or served == "":
            await turns.add(owner="b")
        served += owners(await turns.take(1))
    assert served.count("b") <= 32


async def test_an_owners_tasks_come_in_the_order_of_submission(turns: Turns) -> None:
    await turns.add(num=30)
    assert [task.id for task in await turns.take(30)] == [f"task_{number}" for number in range(30)]


async def test_a_stream_of_one_owner_does_not_keep_another_out_of_any_class(turns: Turns) -> None:
    """Turns are kept for each class: who is served much in p0 may be first in p2 all the same, and the reverse."""
    await turns.add(0, owner="a", num=100)
    await turns.add(2, owner="b", num=30)
    await turns.take(90)  # ten of them b's
    await turns.add(2, owner="c", num=30)
    await turns.add(2, owner="a", num=30)
    rest = Counter(task.owner for task in await turns.take(50) if task.priority == 2)
    assert max(rest.values()) - min(rest.values()) <= 2  # newcomers begin where the last one served began
    assert set(rest) == {"a", "b", "c"}


Step = st.tuples(st.sampled_from(["add", "add", "take"]), st.integers(0, 2), st.sampled_from("abc"))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(Step, max_size=60))
async def test_everything_that_waits_is_handed_out_once_whatever_comes_when(
    redis_servers: Servers, steps: list[tuple[str, int, str]]
) -> None:
    turns = Turns(redis_servers.get(next(iter(PAIRS.values()))[1]).url)
    taken: list[str] = []
    for what, priority, owner in steps:
        if what == "add":
            await turns.add(priority, owner)
        elif task := await turns.next():
            taken.append(task.id)
    while task := await turns.next():
        taken.append(task.id)
    assert sorted(taken) == sorted(turns._tasks)
    await turns.queue.close()
