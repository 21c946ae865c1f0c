"""Real workers, a real server and a real Redis, all of them killed and stopped at random: each task is closed exactly once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from atlas.directory import DataDirectory
from atlas.settings import LedgerSettings
from atlas.store import open_store
from atlas.store.tables import tasks
from tests.ledgers import fresh_database
from tests.store.journal_protocol import Client, Unreachable
from tests.store.journals import PAIRS, running
from tests.store.live.conftest import Server

LEASE_S = 0.8
COUNT_CLOSINGS = (
    "CREATE TABLE closings (task_id TEXT)",
    """CREATE TRIGGER count_closings AFTER UPDATE OF state ON tasks WHEN NEW.state = 'closed'
    BEGIN INSERT INTO closings VALUES (NEW.id); END""",
)


class House:
    """The processes of one run."""

    def __init__(self, folder: Path, ledger_url: str, redis: Server) -> None:
        self.folder = folder
        self.ledger_url = ledger_url
        self.redis = redis
        self.socket = folder / "server.sock"
        self.log = folder / "workers.log"
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.server: subprocess.Popen[bytes] | None = None

    def start_server(self) -> None:
        arguments = [str(self.folder / "data"), self.ledger_url, self.redis.url, str(self.socket), str(LEASE_S)]
        self.server = self._start("journal_server", *arguments)

    def start_worker(self, name: str) -> None:
        self.workers[name] = self._start("journal_worker", str(self.socket), name, str(self.log), str(LEASE_S))

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{module}.out").open("ab") as output:
            command = [sys.executable, "-m", f"tests.store.{module}", *arguments]
            return subprocess.Popen(command, stdout=output, stderr=output)

    def end(self) -> None:
        for process in [*self.workers.values(), *([self.server] if self.server else [])]:
            process.kill()
            process.wait(60)


class Trouble:
    """Does harm, until it is stopped; counts what it did.

    Each restart of Redis or the server gives all running tasks a fresh lease, so there are no more of them than `num_restarts` of
    each kind: were there one every second, what a killed worker had would never be taken over.
    """

    def __init__(self, house: House, seed: int, *, num_restarts: int) -> None:
        self._num_restarts = num_restarts
        self.done: Counter[str] = Counter()
        self._house = house
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._timers: list[threading.Timer] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Trouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        workers = [self.kill_worker, self.stop_worker]
        plan = [self.kill_redis, self.end_redis, self.kill_server] * self._num_restarts + workers * 3 * self._num_restarts
        self._random.shuffle(plan)
        while not self._over.wait(self._random.uniform(0.2, 0.8)):
            harm = plan.pop() if plan else self._random.choice(workers)
            harm()
            self.done[harm.__name__] += 1
        for timer in self._timers:
            timer.join()

    def kill_worker(self) -> None:
        name = self._random.choice(list(self._house.workers))
        self._house.workers[name].kill()
        self._house.workers[name].wait(60)
        self._house.start_worker(name)

    def stop_worker(self) -> None:
        """For longer than a lease and the second in which that is noticed."""
        process = self._house.workers[self._random.choice(list(self._house.workers))]
        process.send_signal(signal.SIGSTOP)
        timer = threading.Timer(LEASE_S + 1.5, process.send_signal, (signal.SIGCONT,))
        self._timers.append(timer)
        timer.start()

    def kill_redis(self) -> None:
        self._house.redis.kill()
        time.sleep(self._random.uniform(0.0, 0.5))
        self._house.redis.start()

    def end_redis(self) -> None:
        assert self._house.redis.process is not None
        self._house.redis.process.send_signal(signal.SIGTERM)
        self._house.redis.process.wait(60)
        time.sleep(self._random.uniform(0.0, 0.5))
        self._house.redis.start()

    def kill_server(self) -> None:
        assert self._house.server is not None
        self._house.server.kill()
        self._house.server.wait(60)
        self._house.start_server()


@pytest.fixture(params=[name for name in PAIRS if not name.endswith("url")])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    ledger, redis_name = PAIRS[request.param]
    with contextlib.ExitStack() as stack:
        url = ""
        if ledger == "postgresql":
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres_server")))
        redis = stack.enter_context(running(redis_name))
        house = House(tmp_path, url, redis)
        prepare(house)
        stack.callback(house.end)
        house.start_server()
        for number in range(3):
            house.start_worker(f"w{number}")
        yield house


def prepare(house: House) -> None:
    """Have SQLite itself count how often a task is closed."""
    directory = DataDirectory(house.folder / "data").create()
    directory.hold()
    store = open_store(directory, settings=LedgerSettings(url=house.ledger_url))
    if not house.ledger_url:

        def work(connection: sa.Connection) -> None:
            for statement in COUNT_CLOSINGS:
                connection.exec_driver_sql(statement)

        store.tasks._ledger.write(work).result()
    store.close()
    directory.release()


@pytest.mark.parametrize("num_tasks", [300, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_each_task_is_closed_exactly_once_whoever_is_killed(
    house: House, num_tasks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("ATLAS_TEST_SEED", "5"))
    began_s = time.monotonic()
    with contextlib.closing(Client(house.socket)) as client, Trouble(house, seed, num_restarts=num_tasks // 150) as trouble:
        names = [
            client.insist(
                "submit",
                owner=f"usr_{number % 3}",
                priority=number % 3,
                body=b"%d" % number,
                idempotency_key=f"{number}",
                max_deliveries=1000,
            )
            for number in range(num_tasks)
        ]
        until_closed(client, num_tasks)
    took_s = time.monotonic() - began_s
    time.sleep(LEASE_S + 2.0)  # for who was stopped to wake up and be told
    house.end()
    assert len(set(names)) == num_tasks
    num_fenced = check_ledger(house, names)
    check_log(house)
    with capsys.disabled():
        print(f"\n{num_tasks} tasks closed once in {took_s:.1f} s, {num_fenced} results fenced; {dict(trouble.done)}")
    assert set(trouble.done) == {"kill_worker", "stop_worker", "kill_redis", "end_redis", "kill_server"}


def until_closed(client: Client, num_tasks: int) -> None:
    deadline_s = time.monotonic() + num_tasks * 0.5
    while True:
        with contextlib.suppress(Unreachable):
            if client.call("stats")["outcomes"].get("done", 0) == num_tasks:
                return
        assert time.monotonic() < deadline_s, "timed out"
        time.sleep(0.1)


def check_ledger(house: House, names: list[str]) -> int:
    """Every task is done, once, with the result of the delivery that closed it, charged once; the number of fenced results."""
    directory = DataDirectory(house.folder / "data").create()
    directory.hold()
    store = open_store(directory, settings=LedgerSettings(url=house.ledger_url))
    ledger = store.tasks._ledger
    rows = ledger.read(lambda connection: connection.execute(sa.select(tasks)).all())
    assert {row.id for row in rows} == set(names)
    assert {(row.state, row.outcome) for row in rows} == {("closed", "done")}
    assert all(row.closed_by == row.delivery == int(row.result.split()[0]) for row in rows)
    spent = sum(ledger.read(lambda connection: connection.scalars(sa.text("SELECT sandbox_s FROM task_days")).all()))
    assert spent == len(names)
    if not house.ledger_url:
        counted = ledger.read(lambda connection: Counter(connection.scalars(sa.text("SELECT task_id FROM closings"))))
        assert counted == Counter(names)
    store.close()
    directory.release()
    return sum(row.num_fenced for row in rows)


def check_log(house: House) -> None:
    """What workers were told: at most one of them that it closed a task, and no later delivery did a step that was kept.

    An earlier delivery may: a worker that stood still between asking and doing has lost its lease, and keeps nothing.
    """
    closings: Counter[str] = Counter()
    kept_by: dict[str, int] = {}
    done_by: defaultdict[str, list[int]] = defaultdict(list)
    for line in house.log.read_text().splitlines():
        _, what, task_id, number, *more = line.split()
        if what == "finish":
            closings[task_id] += more == ["closed"]
        elif what == "kept":
            kept_by.setdefault(task_id, int(number))
        else:
            done_by[task_id].append(int(number))
    assert max(closings.values()) == 1
    assert [task_id for task_id, number in kept_by.items() if max(done_by[task_id]) > number] == []
