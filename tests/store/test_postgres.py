from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from atlas.directory import DataDirectory
from atlas.errors import BadRequest, LedgerUnavailable, OperatorError, SettingsError
from atlas.settings import LedgerSettings
from atlas.store import open_store
from tests.ledgers import Cluster, fresh_database
from tests.store.test_usage import reservation, usage


@pytest.fixture
def url(postgres_server: str) -> Iterator[str]:
    with fresh_database(postgres_server) as url:
        yield url


@pytest.mark.parametrize("wrong", ["mysql://host/db", "sqlite:///file", "not a url", "redis://host"])
def test_other_urls_are_refused_by_name(directory: DataDirectory, wrong: str) -> None:
    with pytest.raises(SettingsError, match=r"ledger\.url.*postgresql://"):
        open_store(directory, settings=LedgerSettings(url=wrong))


def test_a_server_that_does_not_answer_is_named_without_its_password(directory: DataDirectory, tmp_path: Path) -> None:
    url = f"postgresql://ana:hunter2@/atlas?host={tmp_path}"
    with pytest.raises(OperatorError, match=r"ledger\.url") as caught:
        open_store(directory, settings=LedgerSettings(url=url))
    assert "hunter2" not in caught.value.message
    assert "ana" in caught.value.message


def test_a_second_server_on_one_database_is_refused(
    directory: DataDirectory, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas.store.postgres.LOCK_TIMEOUT_MS", 200)
    first = open_store(directory, settings=LedgerSettings(url=url))
    other = DataDirectory(tmp_path / "other").create()
    other.hold()
    with pytest.raises(OperatorError, match="another ATLAS server"):
        open_store(other, settings=LedgerSettings(url=url))
    first.close()
    (other.secrets / "pepper").write_bytes((directory.secrets / "pepper").read_bytes())
    open_store(other, settings=LedgerSettings(url=url)).close()
    other.release()


def test_a_lost_connection_is_made_again(directory: DataDirectory, url: str) -> None:
    store = open_store(directory, settings=LedgerSettings(url=url))
    key = store.keys.mint("laptop").key
    terminate = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = :name"
    )
    store._ledger.read(lambda connection: connection.execute(terminate, {"name": sa.make_url(url).database}).all())
    with pytest.raises(LedgerUnavailable, match="PostgreSQL does not answer"):
        store.check()
    store.check()
    assert store.keys.verify(key)
    store.close()


def test_a_killed_server_is_said_and_what_was_told_is_there_afterwards(directory: DataDirectory, cluster: Cluster) -> None:
    """kill -9 of PostgreSQL while 16 threads settle: each request that was told it is settled stands once afterwards."""
    with fresh_database(cluster.url) as url:
        store = open_store(directory, settings=LedgerSettings(url=url))
        key = store.keys.mint("laptop").key
        told: set[str] = set()
        refused: set[str] = set()

        def settle(index: int) -> None:
            name = str(index)
            try:
                store.usage.reserve(reservation(name)).result()
                store.usage.settle(usage(name)).result()
                told.add(name)
            except LedgerUnavailable:
                refused.add(name)

        with ThreadPoolExecutor(16) as pool:
            work = [pool.submit(settle, index) for index in range(400)]
            while len(told) < 50:
                time.sleep(0.001)
            cluster.kill()
        assert [future.exception() for future in work] == [None] * 400
        assert refused
        assert store.keys.verify(key).name == "laptop"
        with pytest.raises(LedgerUnavailable):
            store.usage.recent()
        with pytest.raises(LedgerUnavailable):
            store.check()
        cluster.start()
        store.check()
        kept = [one.request_id for one in store.usage.recent(limit=1000)]
        assert len(kept) == len(set(kept))
        assert told <= set(kept)
        for name in refused:  # whoever was refused may try again
            store.usage.settle(usage(name)).result()
        assert store.usage.totals(since=0, until=2e9, group="user")[0].requests == 400
        store.close()


def test_nul_in_a_text_is_the_askers_fault(directory: DataDirectory, url: str) -> None:
    store = open_store(directory, settings=LedgerSettings(url=url))
    with pytest.raises(BadRequest):
        store.usage.recent(model="a\0b")
    with pytest.raises(BadRequest):
        store.accounts.withdraw_invitation("a\0b", actor="test")
    store.close()
