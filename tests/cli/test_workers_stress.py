"""A thousand tasks through `atlas serve` as it is shipped, while all that can be killed is: each is closed and paid once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from atlas.directory import DataDirectory
from atlas.settings import LedgerSettings
from atlas.store import Store, open_store
from atlas.store.tables import tasks, usage_events
from tests.cli.conftest import RunningServer, arguments_of, children, clean_environment, wait_for
from tests.cli.far_away import Proxy
from tests.store.live.conftest import Server, binaries
from tests.store.test_journal_stress import COUNT_CLOSINGS

LEASE_S = 2.0
RIGHT = "```python\ndef double(x):\n    return 2 * x\n```\n"
BODY = {"task": "Write double(x).", "tests": "assert double(4) == 8\nassert double(0) == 0", "k": 1, "max_attempts": 1}
SETTINGS = (
    "tasks.workers=2",
    f"tasks.lease_s={LEASE_S}",
    "tasks.open_tasks=0",
    "server.restart_limit=1000",
    "log.level=warning",
)


class House:
    """The processes of one run: a server with two workers of its own, one behind a network, and a Redis."""

    def __init__(self, folder: Path, redis: Server) -> None:
        self.folder, self.redis = folder, redis
        places = {"ATLAS_LEDGER_URL": "", "ATLAS_REDIS_URL": redis.url}  # of its own, whatever tests were told of
        self.server = RunningServer(folder / "data", *SETTINGS, stdin=subprocess.DEVNULL, SCRIPTED_REPLY=RIGHT, **places)
        self.server.wait_ready()
        self.proxy = Proxy(int(self.server.url.rpartition(":")[2]))
        made = self.server.cli("keys", "create", "--name", "worker", "--scope", "worker", "--json")
        self.worker_key = str(json.loads(made.stdout)["key"])
        self.far: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self.start_far()

    def start_far(self) -> None:
        with (self.folder / "far.out").open("ab") as output:
            self.far = subprocess.Popen(
                [sys.executable, "-m", "atlas", "worker", "--server", f"http://127.0.0.1:{self.proxy.port}", "--server-sandbox"],
                stdout=output,
                stderr=output,
                env=clean_environment(
                    ATLAS_API_KEY=self.worker_key, ATLAS_LOG_LEVEL="warning", ATLAS_HOME=str(self.folder / "far")
                ),
            )

    def near(self) -> list[int]:
        """Worker processes of the server."""
        with suppress(OSError, ValueError):
            return [pid for pid in children(self.server.child) if b"atlas.ralph" in arguments_of(pid)]
        return []

    @contextmanager
    def http(self) -> Iterator[httpx.Client]:
        headers = {"authorization": f"Bearer {self.server.key}"}
        with httpx.Client(base_url=self.server.url, headers=headers, timeout=20) as http:
            yield http

    def close(self) -> None:
        """Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        assert self.far is not None
        self.far.send_signal(signal.SIGCONT)
        self.far.kill()
        self.far.wait(10)
        self.proxy.close()
        self.server.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.server.process.wait(30)
        self.server.stop()


class Trouble:
    """Does harm until it is stopped, and counts what it did; all of it ends within a few seconds."""

    def __init__(self, house: House, seed: int, *, num_restarts: int) -> None:
        self.done: Counter[str] = Counter()
        self._house, self._random = house, random.Random(seed)
        self._over = threading.Event()
        self._num_restarts = num_restarts
        self._thread = threading.Thread(target=self._run)
        self.failure: BaseException | None = None

    def __enter__(self) -> Trouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        often: list[Callable[[], None]] = [self.kill_worker, self.stop_worker, self.kill_far, self.swallow, self.cut]
        plan = [self.kill_redis, self.end_redis, self.kill_server] * self._num_restarts + often * self._num_restarts
        self._random.shuffle(plan)
        try:
            while not self._over.wait(self._random.uniform(0.5, 1.5)):
                harm = plan.pop() if plan else self._random.choice(often)
                harm()
                self.done[harm.__name__] += 1
        except BaseException as error:  # told by whoever waits for the end
            self.failure = error

    def _pause(self, least_s: float, most_s: float) -> None:
        time.sleep(self._random.uniform(least_s, most_s))

    def kill_worker(self) -> None:
        if pids := self._house.near():
            with suppress(ProcessLookupError):
                os.kill(self._random.choice(pids), signal.SIGKILL)

    def stop_worker(self) -> None:
        """For longer than a lease."""
        if pids := self._house.near():
            pid = self._random.choice(pids)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self._pause(LEASE_S + 0.5, LEASE_S + 1.5)
                os.kill(pid, signal.SIGCONT)

    def kill_far(self) -> None:
        assert self._house.far is not None
        self._house.far.kill()
        self._house.far.wait(10)
        self._house.start_far()

    def swallow(self) -> None:
        self._house.proxy.swallow()
        self._pause(0.5, 2 * LEASE_S)
        self._house.proxy.let_through()

    def cut(self) -> None:
        self._house.proxy.cut()

    def kill_redis(self) -> None:
        self._house.redis.kill()
        self._pause(0.0, 1.0)
        self._house.redis.start()

    def end_redis(self) -> None:
        assert self._house.redis.process is not None
        self._house.redis.process.send_signal(signal.SIGTERM)
        self._house.redis.process.wait(20)
        self._pause(0.0, 1.0)
        self._house.redis.start()

    def kill_server(self) -> None:
        """And wait until another serves: its parent lets more time pass with each death within a minute."""
        os.kill(self._house.server.child, signal.SIGKILL)
        wait_for(self._house.server.is_ready, 60)


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """The ledger, while no server has it."""
    directory = DataDirectory(folder / "data").create()
    directory.hold()
    with closing(open_store(directory, settings=LedgerSettings())) as store:
        yield store
    directory.release()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with opened(tmp_path) as store:

        def work(connection: sa.Connection) -> None:
            for statement in COUNT_CLOSINGS:
                connection.exec_driver_sql(statement)

        store.tasks._ledger.write(work).result()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="atlas-", dir="/tmp"))
        redis = Server(next(iter(binaries().values())), Path(folder))
        redis.start()
        stack.callback(redis.stop)
        house = House(tmp_path, redis)
        stack.callback(house.close)
        yield house


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_thousand_tasks_are_closed_once_and_paid_once_whoever_is_killed(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    num_tasks = int(os.environ.get("ATLAS_TEST_TASKS", "1000"))
    seed = int(os.environ.get("ATLAS_TEST_SEED", "5"))
    began_s = time.monotonic()
    with Trouble(house, seed, num_restarts=max(1, num_tasks // 100)) as trouble:
        ids = [submit(house, number) for number in range(num_tasks)]
        until_closed(house, num_tasks, timeout_s=60 + num_tasks * 1.2)
    took_s = time.monotonic() - began_s
    time.sleep(LEASE_S + 2.0)  # for who was stopped to wake up and be told
    house.close()
    assert len(set(ids)) == num_tasks
    with opened(house.folder) as store:
        told = check(store, set(ids))
    assert told["paid_twice"] <= trouble.done["kill_server"]  # killed between the usage row and the closing: solved once more
    with capsys.disabled():
        print(f"\n{num_tasks} tasks closed once in {took_s:.1f} s: {told}; {dict(trouble.done)}")
    assert set(trouble.done) >= {
        "kill_worker",
        "stop_worker",
        "kill_far",
        "swallow",
        "cut",
        "kill_redis",
        "end_redis",
        "kill_server",
    }


def submit(house: House, number: int) -> str:
    """Until it is taken: the same key is the same task."""
    priority = "p1" if number % 2 else "p2"
    deadline_s = time.monotonic() + 180
    while True:
        with suppress(httpx.TransportError), house.http() as http:
            reply = http.post("/v1/tasks", json=BODY | {"priority": priority}, headers={"idempotency-key": f"task {number}"})
            if reply.status_code in (200, 202):
                return str(reply.json()["id"])
            assert reply.status_code in (429, 503), reply.text
        assert time.monotonic() < deadline_s, "nobody took it for three minutes"
        time.sleep(0.1)


def until_closed(house: House, num_tasks: int, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while (num_closed := _num_closed(house)) != num_tasks:
        said = house.server.stderr.read_text()[-2000:]
        assert time.monotonic() < deadline_s, f"{num_closed} of {num_tasks} tasks are closed; {said}"
        time.sleep(1.0)


def _num_closed(house: House) -> int | None:
    """None: it does not say now, or some wait."""
    with suppress(httpx.TransportError), house.http() as http:
        waiting = http.get("/v1/queue/stats")
        if waiting.status_code == 200 and waiting.json()["total_waiting"] == 0:
            closed = http.get("/v1/tasks", params={"state": "closed", "limit": 1000})
            return len(closed.json()["data"]) if closed.status_code == 200 else None
    return None


def check(store: Store, ids: set[str]) -> dict[str, int]:
    """Each task was closed once, and each result was paid for once; what there is to count."""
    ledger = store.tasks._ledger
    rows = ledger.read(lambda connection: connection.execute(sa.select(tasks)).all())
    assert {row.id for row in rows} == ids
    assert {row.state for row in rows} == {"closed"}
    closings = ledger.read(lambda connection: Counter(connection.scalars(sa.text("SELECT task_id FROM closings"))))
    assert closings == Counter(ids)
    outcomes = Counter(row.outcome for row in rows)
    assert set(outcomes) <= {"done", "dead"}
    assert outcomes["done"] >= 0.97 * len(ids), [row.reason for row in rows if row.outcome == "dead"]
    paid: Counter[tuple[str, str]] = Counter()
    for usage in ledger.read(lambda connection: connection.execute(sa.select(usage_events)).all()):
        assert usage.state in ("completed", "interrupted"), usage
        paid[usage.request_id.partition("-")[0], usage.state] += 1
    done = {row.id for row in rows if row.outcome == "done"}
    # A server that is killed after the last token leaves an interrupted row, and the worker brings the result to the next one.
    assert [task_id for task_id in done if not paid[task_id, "completed"] + paid[task_id, "interrupted"]] == []
    assert store.usage.open_reservations() == []
    twice = sum(paid[task_id, "completed"] > 1 for task_id in done)
    return {
        **outcomes,
        "fenced": sum(row.num_fenced for row in rows),
        "deliveries": sum(row.delivery for row in rows),
        "interrupted": sum(number for (_, state), number in paid.items() if state == "interrupted"),
        "paid_twice": twice,
    }
