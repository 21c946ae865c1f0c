from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from atlas.directory import DataDirectory
from atlas.errors import Conflict, LedgerUnavailable
from atlas.store import Store, open_store
from atlas.store.database import SQLite
from atlas.store.ledger import GROUP_LIMIT, Ledger
from atlas.store.tables import meta
from atlas.store.written import Written
from tests.disks import read_only
from tests.store.test_usage import Held, reservation, usage


def put(name: str) -> sa.Executable:
    return meta.insert().values(name=name, value="")


def names(store: Store) -> set[str]:
    return store._ledger.read(lambda connection: set(connection.scalars(sa.select(meta.c.name))))


def test_one_failing_work_does_not_harm_its_neighbours(store: Store) -> None:
    def refuse(connection: sa.Connection) -> None:
        connection.execute(put("refused"))
        raise Conflict("no")

    with Held(store):
        good = [store._ledger.write(lambda connection, n=n: connection.execute(put(f"good {n}")) and n) for n in range(5)]  # type: ignore[misc]
        refused = store._ledger.write(refuse)
        twice = store._ledger.write(lambda connection: connection.execute(put("good 0")))
        later = store._ledger.write(lambda connection: connection.execute(put("later")) and "later")
        metered = store.usage.settle(usage("beside"))
    assert [future.result() for future in good] == list(range(5))
    assert isinstance(refused.exception(), Conflict)
    assert isinstance(twice.exception(), sa.exc.IntegrityError)
    assert later.result() == "later"
    assert metered.exception() is None
    assert {"good 0", "good 4", "later"} <= names(store)
    assert "refused" not in names(store)
    assert [one.request_id for one in store.usage.recent()] == ["beside"]


def test_more_works_than_fit_one_group_are_all_done(store: Store) -> None:
    with Held(store):
        futures = [store._ledger.write(lambda connection, n=n: connection.execute(put(str(n)))) for n in range(GROUP_LIMIT + 10)]  # type: ignore[misc]
    for future in futures:
        future.result()
    assert {str(n) for n in range(GROUP_LIMIT + 10)} <= names(store)


def test_works_that_are_asked_for_together_share_a_commit_even_where_nobody_else_writes(store: Store) -> None:
    commits: list[object] = []
    sa.event.listen(store._ledger.database.engine, "commit", commits.append)
    for n in range(30):
        with store._ledger.together():
            first = store._ledger.write(lambda connection, n=n: connection.execute(put(f"{n} a")) and n)  # type: ignore[misc]
            time.sleep(0.001)  # the writer is free, and would have begun
            second = store.usage.settle(usage(f"{n} b"))
        assert (first.result(), second.result()) == (n, None)
    assert len(commits) == 30
    with store._ledger.together():
        pass
    store._ledger.write(lambda connection: connection.execute(put("after"))).result(30)


def test_one_of_two_that_are_asked_for_together_may_fail(store: Store) -> None:
    with store._ledger.together():
        refused = store._ledger.write(lambda connection: connection.execute(put("twice")) and connection.execute(put("twice")))
        settled = store.usage.settle(usage("beside"))
    assert isinstance(refused.exception(), sa.exc.IntegrityError)
    assert settled.exception() is None
    assert [one.request_id for one in store.usage.recent()] == ["beside"]


def test_a_pair_is_no_crowd_that_the_writer_would_wait_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.store.ledger.GATHER_S", 60.0)
    with store._ledger.together():
        pair = [store._ledger.write(lambda connection: None) for _ in range(2)]
    for future in pair:
        future.result(30)
    store._ledger.write(lambda connection: None).result(30)


def test_a_write_nobody_waits_for_any_more_is_done_all_the_same(store: Store) -> None:
    with Held(store):
        store._ledger.write(lambda connection: connection.execute(put("wanted")))
    store._ledger.write(lambda connection: None).result()
    assert "wanted" in names(store)


def test_closing_finishes_what_was_asked_for(directory: DataDirectory) -> None:
    store = open_store(directory)
    held = Held(store)
    with held:
        futures = [store.usage.settle(usage(str(index))) for index in range(50)]
        closing = threading.Thread(target=store.close)
        closing.start()
    closing.join()
    assert [future.exception() for future in futures] == [None] * 50
    with pytest.raises(LedgerUnavailable, match="stopping"):
        store.usage.settle(usage("too late")).result()
    store.close()


def test_the_check_writes(store: Store) -> None:
    store.check()
    assert "checked_at" in names(store)


def test_a_stuck_disk_fails_the_check(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.store.store.CHECK_TIMEOUT_S", 0.05)
    with Held(store), pytest.raises(LedgerUnavailable, match="stuck"):
        store.check()
    store._ledger.write(lambda _connection: None).result()
    monkeypatch.undo()
    store.check()


# -- faults of the file system ---------------------------------------------------------------------------------------------


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return filler
    raise AssertionError("the disk has no end")


def settle_until_failure(store: Store) -> LedgerUnavailable:
    """The ledger's files have some room left in themselves; use it up."""
    for group in range(1000):
        futures: list[Written[None]] = [store.usage.settle(usage(f"{group} {index}")) for index in range(50)]
        errors = {type(future.exception()): future.exception() for future in futures}
        if set(errors) != {type(None)}:
            error = errors[LedgerUnavailable]
            assert isinstance(error, LedgerUnavailable)
            return error
    raise AssertionError("nothing failed")


def test_a_full_disk_is_said_and_recovered_from(small_disk: Path) -> None:
    directory = DataDirectory(small_disk / "data").create()
    directory.hold()
    store = open_store(directory)
    key = store.keys.mint("laptop").key
    filler = fill(small_disk)
    error = settle_until_failure(store)
    assert "full" in error.message
    assert error.retry_after_s
    with pytest.raises(LedgerUnavailable):
        store.check()
    assert store.keys.verify(key).name == "laptop"
    assert store.keys.list()
    told = {one.request_id for one in store.usage.recent(limit=100_000)}
    filler.unlink()
    store.check()
    store.usage.reserve(reservation("after")).result()
    store.usage.settle(usage("after")).result()
    store.close()
    again = open_store(directory)
    assert {one.request_id for one in again.usage.recent(limit=100_000)} == told | {"after"}
    assert again.usage.totals(since=0, until=2e9, group="user")[0].requests == len(told) + 1
    again.close()
    directory.release()


def test_a_file_system_that_turns_read_only_is_said_and_recovered_from(small_disk: Path) -> None:
    ledger = Ledger(SQLite(small_disk / "atlas.sqlite3"))
    ledger.migrate()
    ledger.database.disconnect()  # open files would keep it from being remounted
    with read_only(small_disk), pytest.raises(LedgerUnavailable, match=r"read-?only|unable to open"):
        ledger.write(lambda connection: connection.execute(put("lost"))).result()
    ledger.write(lambda connection: connection.execute(put("kept"))).result()
    assert ledger.read(lambda connection: set(connection.scalars(sa.select(meta.c.name)))) == {"kept"}
    ledger.close()


def test_a_ledger_whose_folder_is_gone_is_said(tmp_path: Path) -> None:
    """The one fault of this kind that root meets as well, without mounting."""
    folder = tmp_path / "folder"
    folder.mkdir()
    ledger = Ledger(SQLite(folder / "atlas.sqlite3"))
    ledger.migrate()
    ledger.database.disconnect()
    shutil.move(folder, tmp_path / "elsewhere")
    with pytest.raises(LedgerUnavailable, match="unable to open"):
        ledger.write(lambda connection: connection.execute(put("lost"))).result()
    with pytest.raises(LedgerUnavailable):
        ledger.read(lambda connection: connection.scalar(sa.select(1)))
    shutil.move(tmp_path / "elsewhere", folder)
    ledger.write(lambda connection: connection.execute(put("kept"))).result()
    ledger.close()
