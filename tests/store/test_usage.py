from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from atlas.directory import DataDirectory
from atlas.errors import BadRequest, Conflict
from atlas.settings import LedgerSettings
from atlas.store import Reservation, Store, open_store
from atlas.store.usage import DAY_S, PRUNE_ROWS
from atlas.store.written import Written
from atlas.types import RequestState, Usage
from tests.store.conftest import OpenStore

NOON = 1_799_971_200.0 + 43_200.0  # 2027-01-15T12:00Z
HOUR = 3600.0


def reservation(request_id: str, **values: Any) -> Reservation:
    given = {"tokens": 100, "prompt_tokens": 40, **values}
    return Reservation(
        **{"request_id": request_id, "at": NOON, "owner": "usr_a", "key_id": "key_a", "route": "chat", "model": "nano", **given}
    )


def usage(request_id: str, **values: Any) -> Usage:
    given = {"state": "completed", "prompt_tokens": 40, "completion_tokens": 60, **values}
    return Usage(
        **{"request_id": request_id, "at": NOON, "owner": "usr_a", "key_id": "key_a", "route": "chat", "model": "nano", **given}
    )


def settle(store: Store, *usages: Usage) -> None:
    for future in [store.usage.settle(one) for one in usages]:
        future.result()


class Held:
    """The writer thread waits inside the block, so that everything asked for there ends up in one group."""

    def __init__(self, store: Store) -> None:
        self._ledger = store._ledger
        self._go = threading.Event()

    def __enter__(self) -> None:
        began = threading.Event()

        def hold(_connection: sa.Connection) -> None:
            began.set()
            self._go.wait(60)

        self._ledger.write(hold)
        assert began.wait(60)

    def __exit__(self, *_: object) -> None:
        self._go.set()


# -- reserve, extend, settle -----------------------------------------------------------------------------------------------


def test_a_reservation_becomes_one_event(reopen: OpenStore) -> None:
    store = reopen()
    store.usage.reserve(reservation("r", cost=7)).result()
    assert store.usage.open_reservations() == [reservation("r", cost=7)]
    assert store.usage.recent() == []
    store.usage.extend("r", tokens=400, cost=20).result()
    assert store.usage.open_reservations() == [reservation("r", tokens=400, cost=20)]
    done = usage("r", cached_tokens=8, cost=9, finish="stop", is_streamed=True, queue_s=0.5, ttft_s=0.25, wall_s=1.5)
    store.usage.settle(done).result()
    again = reopen()
    assert again.usage.recent() == [done]
    assert again.usage.open_reservations() == []


def test_a_request_id_is_reserved_once(store: Store) -> None:
    store.usage.reserve(reservation("r")).result()
    with pytest.raises(Conflict, match="'r'"):
        store.usage.reserve(reservation("r")).result()
    settle(store, usage("r"))
    with pytest.raises(Conflict):
        store.usage.reserve(reservation("r")).result()
    assert store.usage.open_reservations() == []


def test_a_repeated_reservation_does_not_harm_those_beside_it(store: Store) -> None:
    with Held(store):
        futures = {name: store.usage.reserve(reservation(name)) for name in ("a", "b", "c")}
        repeated = [store.usage.reserve(reservation("b")) for _ in range(3)]
    assert [future.exception() for future in futures.values()] == [None] * 3
    assert [type(future.exception()) for future in repeated] == [Conflict] * 3
    assert len(store.usage.open_reservations()) == 3


def test_settling_happens_once_with_200_at_once(store: Store) -> None:
    store.usage.reserve(reservation("r")).result()
    with ThreadPoolExecutor(200) as pool:
        list(pool.map(lambda index: store.usage.settle(usage("r", completion_tokens=index)).result(), range(200)))
    (event,) = store.usage.recent()
    (total,) = store.usage.totals(since=NOON, until=NOON + 1, group="key")
    assert (total.requests, total.completion_tokens) == (1, event.completion_tokens)


def test_repeats_in_one_group_count_once_and_the_first_stands(store: Store) -> None:
    settle(store, usage("before"))
    with Held(store):
        futures = [store.usage.settle(usage(name, completion_tokens=n)) for n, name in enumerate(("a", "before", "a", "b"))]
    assert [future.exception() for future in futures] == [None] * 4
    assert {event.request_id: event.completion_tokens for event in store.usage.recent()} == {"before": 60, "a": 0, "b": 3}
    assert store.usage.totals(since=NOON, until=NOON + 1, group="key")[0].requests == 3


def test_extending_what_is_settled_changes_nothing(store: Store) -> None:
    store.usage.reserve(reservation("r")).result()
    settle(store, usage("r"))
    store.usage.extend("r", tokens=10_000, cost=0).result()
    store.usage.extend("never reserved", tokens=1, cost=1).result()
    assert store.usage.open_reservations() == []
    assert store.usage.recent() == [usage("r")]


def test_all_that_wait_share_one_commit(store: Store) -> None:
    commits = itertools.count()
    sa.event.listen(store._ledger.database.engine, "commit", lambda _connection: next(commits))
    with Held(store):
        futures: list[Written[None]] = [store.usage.reserve(reservation(str(index))) for index in range(100)]
        futures += [store.usage.settle(usage(str(index))) for index in range(100)]
    for future in futures:
        future.result()
    assert next(commits) == 2  # the one that was held, and one for the rest
    assert len(store.usage.recent(limit=200)) == 100
    assert store.usage.open_reservations() == []


def test_names_too_long_for_a_column_are_cut(store: Store) -> None:
    store.usage.reserve(reservation("r", model="m\0" * 200, route="x" * 100)).result()
    settle(store, usage("r", model="m\0" * 200, finish="f" * 100))
    (event,) = store.usage.recent()
    assert event.model == "m\ufffd" * 100
    assert len(event.finish) == 64
    assert store.usage.totals(since=NOON, until=NOON + 1, group="model")[0].group == event.model


# -- after a crash ---------------------------------------------------------------------------------------------------------


def test_what_a_killed_server_left_open_is_interrupted_once(tmp_path: Path, ledger_url: str) -> None:
    path = tmp_path / "killed"
    script = str(Path(__file__).with_name("reserving_child.py"))
    with subprocess.Popen(
        [sys.executable, script, str(path), ledger_url],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reserved\n"
        child.send_signal(signal.SIGKILL)
    directory = DataDirectory(path).create()
    directory.hold()
    store = open_store(directory, settings=LedgerSettings(url=ledger_url))
    interrupted = sorted(store.usage.interrupt_open(), key=lambda one: one.request_id)
    assert [(one.request_id, one.prompt_tokens, one.completion_tokens, one.cost) for one in interrupted] == [
        ("cut", 10, 100, 5),
        ("extended", 10, 200, 9),
    ]
    assert {(one.state, one.is_estimated) for one in interrupted} == {("interrupted", True)}
    assert store.usage.interrupt_open() == []
    (total,) = store.usage.totals(since=NOON, until=NOON + 1, group="key")
    assert (total.requests, total.failed, total.prompt_tokens, total.completion_tokens, total.cost) == (3, 2, 30, 330, 16)
    store.close()
    directory.release()


# -- reports ---------------------------------------------------------------------------------------------------------------


def test_totals_by_every_group(store: Store) -> None:
    settle(
        store,
        usage("1", at=NOON - HOUR, cost=1),
        usage("2", at=NOON, key_id="key_b", state="failed", completion_tokens=0),
        usage("3", at=NOON + 30, model="other", cached_tokens=5),
        usage("4", at=NOON + 24 * HOUR, owner="usr_b", key_id="key_c", wall_s=2.0, state="aborted"),
    )

    def groups(group: Any, **filters: Any) -> dict[str, tuple[int, int, int]]:
        totals = store.usage.totals(**{"since": 0.0, "until": NOON + 100 * HOUR, "group": group, **filters})
        return {total.group: (total.requests, total.failed, total.prompt_tokens + total.completion_tokens) for total in totals}

    assert groups("key") == {"key_a": (2, 0, 200), "key_c": (1, 0, 100), "key_b": (1, 1, 40)}
    assert groups("user") == {"usr_a": (3, 1, 240), "usr_b": (1, 0, 100)}
    assert groups("model") == {"nano": (3, 1, 240), "other": (1, 0, 100)}
    assert groups("day") == {"2027-01-15": (3, 1, 240), "2027-01-16": (1, 0, 100)}
    assert list(groups("hour")) == ["2027-01-15T11:00Z", "2027-01-15T12:00Z", "2027-01-16T12:00Z"]
    assert groups("key", owner="usr_b") == {"key_c": (1, 0, 100)}
    assert groups("day", key_id="key_a", model="nano") == {"2027-01-15": (1, 0, 100)}
    assert groups("key", since=NOON, until=NOON + 1) == {"key_a": (1, 0, 100), "key_b": (1, 1, 40)}
    assert groups("key", since=NOON + HOUR, until=NOON + 2 * HOUR) == {}


def test_recent_pages_and_filters(store: Store) -> None:
    settle(store, *(usage(f"{index:02}", at=NOON + index // 2, key_id=f"key_{index % 3}") for index in range(10)))
    settle(store, usage("bad", at=NOON - 1, state="failed"))
    page = store.usage.recent(limit=4)
    assert [one.request_id for one in page] == ["09", "08", "07", "06"]
    rest = store.usage.recent(before=(page[-1].at, page[-1].request_id))
    assert [one.request_id for one in rest] == ["05", "04", "03", "02", "01", "00", "bad"]
    assert [one.request_id for one in store.usage.recent(state="failed")] == ["bad"]
    assert [one.request_id for one in store.usage.recent(key_id="key_1", model="nano", owner="usr_a")] == ["07", "04", "01"]


def test_events_for_export_come_oldest_first_and_complete(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.store.reports.EXPORT_ROWS", 3)
    settle(store, *(usage(f"{index}", at=NOON + index // 4) for index in range(10)), usage("b", owner="usr_b"))
    found = list(store.usage.events(since=NOON, until=NOON + 2, owner="usr_a"))
    assert [one.request_id for one in found] == [str(index) for index in range(8)]
    assert len(list(store.usage.events(since=NOON + 1, until=NOON + 3))) == 6


def test_what_was_spent_per_day_rebuilds_budgets(store: Store) -> None:
    settle(
        store,
        usage("1", at=NOON - 24 * HOUR, cost=1),
        usage("2", at=NOON - 13 * HOUR, cost=2),
        usage("3", at=NOON, cost=4),
        usage("4", at=NOON + HOUR, cost=8),
        usage("5", at=NOON, key_id="", cost=16),
    )
    spent = {(row.owner, row.key_id, row.day): (row.tokens, row.cost) for row in store.usage.spent(since=NOON)}
    assert spent == {("usr_a", "key_a", "2027-01-15"): (200, 12), ("usr_a", "", "2027-01-15"): (100, 16)}
    assert {row.day for row in store.usage.spent(since=NOON - 24 * HOUR)} == {"2027-01-14", "2027-01-15"}


def test_a_filter_that_no_column_can_hold_is_the_askers_fault(store: Store) -> None:
    assert store.usage.recent(model="no such") == []
    for impossible in ({"limit": 10**30}, {"model": "\udc80"}):
        with pytest.raises(BadRequest):
            store.usage.recent(**impossible)


# -- retention -------------------------------------------------------------------------------------------------------------


def test_old_events_go_in_chunks_and_sums_stay(reopen: OpenStore, ledger_url: str) -> None:
    store = reopen(settings=LedgerSettings(url=ledger_url, usage_days=10))
    num_old = 2 * PRUNE_ROWS + 5
    settle(
        store, *(usage(f"old {index}", at=NOON - 10 * DAY_S - 1) for index in range(num_old)), usage("new", at=NOON - 9 * DAY_S)
    )
    deleted: list[int] = []

    def note(_connection: object, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("DELETE FROM usage_events"):
            deleted.append(cursor.rowcount)

    sa.event.listen(store._ledger.database.engine, "after_cursor_execute", note)
    assert store.usage.prune(NOON) == num_old
    assert deleted == [PRUNE_ROWS, PRUNE_ROWS, 5, 0]
    assert [one.request_id for one in store.usage.recent()] == ["new"]
    assert store.usage.totals(since=0, until=NOON, group="key")[0].requests == num_old + 1
    assert store.usage.prune(NOON) == 0


# -- sums ------------------------------------------------------------------------------------------------------------------

_numbers = iter(range(10**9))
states: st.SearchStrategy[RequestState] = st.sampled_from(["completed", "aborted", "failed", "interrupted"])
counts = st.integers(0, 2**40)
usages = st.lists(
    st.builds(
        usage,
        st.sampled_from("abcdefgh"),  # ids repeat
        at=st.floats(NOON, NOON + 3 * HOUR),
        key_id=st.sampled_from(["", "key_a", "key_b"]),
        model=st.sampled_from(["nano", "other"]),
        state=states,
        prompt_tokens=counts,
        cached_tokens=counts,
        completion_tokens=counts,
        cost=counts,
        wall_s=st.floats(0, 1000),
    ),
    max_size=12,
)


@hypothesis_settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(usages, max_size=3))
def test_sums_equal_the_sums_of_the_events(store: Store, batches: list[list[Usage]]) -> None:
    example = next(_numbers)  # the ledger is one for all examples; each has its own owner
    for batch in batches:
        mine = [usage(f"{example} {one.request_id}", **{**_fields(one), "owner": f"usr_{example}"}) for one in batch]
        with Held(store):
            futures = [store.usage.settle(one) for one in mine]
        for future in futures:
            future.result()
    events = list(store.usage.events(since=0, until=NOON + 24 * HOUR, owner=f"usr_{example}"))
    assert len(events) == len({one.request_id for batch in batches for one in batch})
    for group, name in (("key", "key_id"), ("model", "model"), ("user", "owner")):
        totals = store.usage.totals(since=NOON, until=NOON + 4 * HOUR, group=group, owner=f"usr_{example}")  # type: ignore[arg-type]
        assert {total.group: total.requests for total in totals} == Counter(getattr(one, name) for one in events)
        for total in totals:
            group_events = [one for one in events if getattr(one, name) == total.group]
            assert total.failed == sum(one.state in ("failed", "interrupted") for one in group_events)
            for field in ("prompt_tokens", "cached_tokens", "completion_tokens", "cost"):
                assert getattr(total, field) == sum(getattr(one, field) for one in group_events)
            assert total.wall_s == pytest.approx(sum(one.wall_s for one in group_events))


def _fields(one: Usage) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Usage.__struct_fields__ if name != "request_id"}
