from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

import atlas.store
from atlas.directory import DataDirectory
from atlas.errors import OperatorError
from atlas.settings import LedgerSettings
from atlas.store import DEFAULT_SCOPES, Store, open_store
from atlas.store.keys import digest, new_key
from atlas.store.tables import metadata
from tests.store.conftest import OpenStore, set_up


def engine_of(directory: DataDirectory, ledger_url: str) -> sa.Engine:
    url = ledger_url.replace("postgresql:", "postgresql+psycopg:") or f"sqlite:///{directory.ledger}"
    return sa.create_engine(url, poolclass=sa.NullPool)


def make_first_version(directory: DataDirectory, ledger_url: str) -> list[str]:
    """A ledger as version 0.1 left it, with three keys; their texts."""
    engine = engine_of(directory, ledger_url)
    config = Config()
    config.set_main_option("script_location", str(Path(atlas.store.__file__).parent / "migrations"))
    pepper = b"p" * 32
    directory.write_secret("pepper", pepper)
    keys = [new_key() for _ in range(3)]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        old = sa.Table("api_keys", sa.MetaData(), autoload_with=connection)
        for index, (key, scopes) in enumerate(zip(keys, (["chat"], ["chat", "tasks"], ["chat"]), strict=True)):
            connection.execute(
                old.insert().values(
                    id=f"key_{index}",
                    digest=digest(pepper, key),
                    name=f"old {index}",
                    owner="owner",
                    scopes=scopes,
                    prefix=key[:12],
                    last4=key[-4:],
                    created_at=100.0 + index,
                    revoked_at=200.0 if index == 2 else None,
                )
            )
    engine.dispose()
    return keys


def test_keys_of_the_first_version_stay_valid_and_are_the_owners(
    directory: DataDirectory, ledger_url: str, reopen: OpenStore
) -> None:
    keys = make_first_version(directory, ledger_url)
    store = reopen()
    owner = store.accounts.owner()
    assert store.accounts.setup_pending()
    principals = [store.keys.verify(key) for key in keys[:2]]
    assert {principal.owner for principal in principals} == {owner.id}
    assert [principal.scopes for principal in principals] == [set(DEFAULT_SCOPES), {"chat", "tasks"}]
    assert [principal.allow_remote for principal in principals] == [False, False]
    assert [info.is_valid(300.0) for info in store.keys.list()] == [True, True, False]
    set_up(store)
    assert store.keys.verify(keys[0]).username == "ana"


def test_migrations_make_the_tables_the_code_uses(directory: DataDirectory, ledger_url: str, store: Store) -> None:
    engine = engine_of(directory, ledger_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata) == []
    engine.dispose()
    assert store.audit.verify() is None


def test_the_file_is_in_wal_mode(directory: DataDirectory) -> None:
    open_store(directory).close()
    with sqlite3.connect(directory.ledger) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_ledger_of_a_newer_version_is_left_alone(directory: DataDirectory, ledger_url: str, reopen: OpenStore) -> None:
    reopen().close()
    engine = engine_of(directory, ledger_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(OperatorError, match="newer version"):
        reopen()


def test_a_file_that_is_no_database_is_named(directory: DataDirectory) -> None:
    directory.ledger.write_bytes(b"not a database" * 1000)
    with pytest.raises(OperatorError, match=r"atlas\.sqlite3.*not a database"):
        open_store(directory)


def test_a_lost_pepper_is_reported_and_not_replaced(directory: DataDirectory, ledger_url: str, reopen: OpenStore) -> None:
    reopen().close()
    (directory.secrets / "pepper").unlink()
    with pytest.raises(OperatorError, match="missing"):
        reopen()
    assert not (directory.secrets / "pepper").exists()


def test_a_pepper_of_another_ledger_is_noticed(directory: DataDirectory) -> None:
    open_store(directory).close()
    directory.write_secret("pepper", b"x" * 32)
    with pytest.raises(OperatorError, match="not the one"):
        open_store(directory, settings=LedgerSettings())
