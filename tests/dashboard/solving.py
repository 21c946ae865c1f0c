"""Tasks of a site: really solved, with a scripted model and the site's sandbox, and put into its journal as a worker would."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import msgspec

from atlas.engine import ScriptedEngine
from atlas.ralph import Tools, solve_task
from atlas.store import Delivery, Ending, Journal, Submission, Task
from atlas.types import Request, Route, RunClosed, User, VisibleTests
from tests.dashboard.site import Site

T = TypeVar("T")

MEDIAN = "Write median(numbers): the middle one of the sorted numbers, or the mean of the two in the middle."
TESTS = (
    "assert median([3, 1, 2]) == 2\nassert median([1, 2]) == 1.5\nassert median([5]) == 5\nassert median([4, 1, 3, 2]) == 2.5\n"
)
CRASHES = "def median(numbers):\n    numbers.sort()\n    return numbers[len(numbers) / 2]\n"
WRONG = "def median(numbers):\n    numbers = sorted(numbers)\n    return numbers[len(numbers) // 2]\n"
RIGHT = (
    "def median(numbers):\n    numbers = sorted(numbers)\n    middle = len(numbers) // 2\n    if len(numbers) % 2:\n"
    "        return numbers[middle]\n    return (numbers[middle - 1] + numbers[middle]) / 2\n"
)
ROUTE = Route(k=2, max_attempts=3)


def do(site: Site, work: Coroutine[Any, Any, T]) -> T:
    """Run where the site lives."""
    return asyncio.run_coroutine_threadsafe(work, site.loop).result(60)


def journal_of(site: Site) -> Journal:
    assert site.gateway.journal is not None
    return site.gateway.journal


def submit(site: Site, owner: User | None = None, *, priority: int = 1, **request: Any) -> Task:
    asked = Request(**{"task": MEDIAN, "tests": VisibleTests(code=TESTS), "route": ROUTE, **request})
    who = owner or site.store.accounts.owner()
    body = msgspec.json.encode(asked)
    return do(site, journal_of(site).submit(Submission(owner=who.id, body=body, priority=priority))).task


def solve(site: Site, replies: Sequence[str], *, is_closed: bool = True) -> Delivery:
    """Lease the next task and solve it with a model that says these programs in turn; leave it before its end, if so wished."""
    return do(site, _solve(site, [f"```python\n{code}```\n" for code in replies], is_closed=is_closed))


async def _solve(site: Site, replies: Sequence[str], *, is_closed: bool) -> Delivery:
    journal, sandbox = journal_of(site), site.gateway.sandbox
    assert sandbox is not None
    lease = await journal.lease("worker-1", wait_s=20.0)
    assert lease is not None
    await journal.heartbeat(lease.delivery)
    engine = ScriptedEngine(replies, delay_s=0.005, context_tokens=40_000)
    tools = Tools(generate=engine.submit, run=sandbox.run)
    async for event in solve_task(msgspec.json.decode(lease.body, type=Request), tools):
        if isinstance(event, RunClosed):
            if is_closed:
                ending = Ending(outcome="done", result=msgspec.json.encode(event.run), sandbox_s=event.run.sandbox_s)
                await journal.finish(lease.delivery, ending)
            break
        await journal.put_events(lease.delivery, msgspec.json.encode(event))
    return lease.delivery


def solve_some(site: Site) -> Task:
    """A task solved in its third attempt, which is returned; one that failed, one cancelled, one that runs, one that waits."""
    solved = submit(site)
    solve(site, [CRASHES, CRASHES, WRONG, WRONG + "\n", RIGHT])
    submit(site, priority=2)
    solve(site, [WRONG])
    do(site, journal_of(site).cancel(submit(site, task="Write a parser for dates such as 'next Tuesday'.").id))
    submit(site, task="Write gcd(a, b).", tests=VisibleTests(code="assert gcd(4, 6) == 2\n"))
    solve(site, ["def gcd(a, b):\n    return a\n"], is_closed=False)
    submit(site, task="Write a program that counts the words of each line it reads.", tests=VisibleTests())
    return solved
