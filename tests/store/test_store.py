from __future__ import annotations

import itertools
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from atlas.errors import BadRequest, DataDirectoryBusy, NotFound, OperatorError, SettingsError, Unauthorized
from atlas.store import DataDirectory, Store, open_store
from atlas.store.keyring import LAST_USED_RESOLUTION_S
from atlas.store.keys import is_well_formed, new_key
from atlas.store.tables import metadata


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DataDirectory]:
    directory = DataDirectory(tmp_path / "data").create()
    directory.hold()
    yield directory
    directory.release()


@pytest.fixture
def store(directory: DataDirectory) -> Iterator[Store]:
    store = open_store(directory)
    yield store
    store.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_minted_key_verifies_to_its_principal(store: Store) -> None:
    key, info = store.mint("laptop", scopes=("chat", "tasks"))
    principal = store.verify(key)
    assert (principal.key_id, principal.name, principal.owner) == (info.id, "laptop", store.accounts.owner().id)
    assert principal.scopes == {"chat", "tasks"}


def test_a_revoked_key_is_refused_at_once(store: Store) -> None:
    key, info = store.mint("laptop")
    store.revoke(info.id)
    with pytest.raises(Unauthorized, match="'laptop' is revoked"):
        store.verify(key)


def test_an_expired_key_is_refused(store: Store) -> None:
    key, _ = store.mint("short", expires_at=time.time() - 1)
    with pytest.raises(Unauthorized, match="expired"):
        store.verify(key)


def test_a_well_formed_but_unknown_key_is_refused_without_being_repeated(store: Store) -> None:
    key = new_key()
    with pytest.raises(Unauthorized) as caught:
        store.verify(key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("token", ["", "sk-llm-", "sk-llm-" + "a" * 49, "' OR 1=1 --", "\udc80" * 56, "é" * 56])
def test_anything_else_is_refused(store: Store, token: str) -> None:
    with pytest.raises(Unauthorized):
        store.verify(token)


def test_one_wrong_character_breaks_the_checksum() -> None:
    key = new_key()
    assert is_well_formed(key)
    other = "b" if key[20] == "a" else "a"
    assert not is_well_formed(key[:20] + other + key[21:])


def test_keys_survive_reopening_and_no_key_is_in_the_file(directory: DataDirectory) -> None:
    first = open_store(directory)
    key, info = first.mint("laptop")
    first.revoke(first.mint("gone").info.id)
    first.close()
    second = open_store(directory)
    assert second.verify(key).key_id == info.id
    assert [known.revoked_at is None for known in second.list()] == [True, False]
    second.close()
    assert key.encode() not in b"".join(path.read_bytes() for path in directory.path.rglob("*") if path.is_file())


def test_revoking_an_unknown_key_names_it(store: Store) -> None:
    with pytest.raises(NotFound, match="'key_nope'"):
        store.revoke("key_nope")


def test_a_key_needs_a_name(store: Store) -> None:
    with pytest.raises(BadRequest):
        store.mint("")


def test_the_use_of_a_key_is_written_down(directory: DataDirectory) -> None:
    store = open_store(directory)
    key, _ = store.mint("laptop")
    before = time.time()
    store.verify(key)
    store.close()
    again = open_store(directory)
    used = again.list()[0].last_used_at
    again.close()
    assert used is not None
    assert used >= before


def test_a_preset_key_of_any_shape_is_accepted(directory: DataDirectory) -> None:
    store = open_store(directory, preset_key="correct horse battery")
    assert store.verify("correct horse battery").key_id == "preset"
    with pytest.raises(Unauthorized):
        store.verify("correct horse batterz")
    store.close()


def test_a_short_preset_key_is_refused_without_being_shown(directory: DataDirectory) -> None:
    with pytest.raises(SettingsError, match="at least 16") as caught:
        open_store(directory, preset_key="hunter2")
    assert "hunter2" not in str(caught.value)


def test_only_the_owner_can_read_the_files(directory: DataDirectory, store: Store) -> None:
    store.mint("laptop")
    assert mode(directory.path) == 0o700
    assert mode(directory.secrets) == 0o700
    assert mode(directory.secrets / "pepper") == 0o600
    assert {mode(path) for path in directory.path.glob("atlas.sqlite3*")} == {0o600}


def test_a_lost_pepper_is_reported_and_not_replaced(directory: DataDirectory) -> None:
    open_store(directory).close()
    (directory.secrets / "pepper").unlink()
    with pytest.raises(OperatorError, match="missing"):
        open_store(directory)
    assert not (directory.secrets / "pepper").exists()


def test_a_ledger_of_a_newer_version_is_left_alone(directory: DataDirectory) -> None:
    open_store(directory).close()
    with sqlite3.connect(directory.ledger) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(OperatorError, match="newer version"):
        open_store(directory)


def test_a_file_that_is_no_database_is_named(directory: DataDirectory) -> None:
    directory.ledger.write_bytes(b"not a database" * 1000)
    with pytest.raises(OperatorError, match=r"atlas\.sqlite3.*not a database"):
        open_store(directory)


def test_migrations_make_the_tables_the_code_uses(directory: DataDirectory, store: Store) -> None:
    engine = sa.create_engine(f"sqlite:///{directory.ledger}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    engine.dispose()


def test_keys_minted_from_many_threads_are_all_there(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda index: store.mint(f"k{index}").key, range(40)))
    assert {store.verify(key).name for key in keys} == {f"k{index}" for index in range(40)}


def test_a_key_in_use_while_it_is_revoked_stays_revoked(directory: DataDirectory) -> None:
    """Noting the use and revoking both change the key; neither may undo the other."""
    ticks = itertools.count(step=LAST_USED_RESOLUTION_S + 1)
    store = open_store(directory, clock=lambda: next(ticks))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for _ in range(20):
        key, info = store.mint("busy")
        with ThreadPoolExecutor(4) as pool:
            uses = [pool.submit(store.verify, key) for _ in range(20)]
            store.revoke(info.id)
        assert {type(use.exception()) for use in uses} <= {type(None), Unauthorized}
        with pytest.raises(Unauthorized):
            store.verify(key)
    sys.setswitchinterval(before)
    store.close()


def test_a_second_process_is_refused_with_the_pid_of_the_first(directory: DataDirectory) -> None:
    code = (
        "import sys; from pathlib import Path; from atlas.store import DataDirectory\n"
        "from atlas.errors import DataDirectoryBusy\n"
        "try: DataDirectory(Path(sys.argv[1])).hold()\n"
        "except DataDirectoryBusy as busy: print(busy)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(directory.path)], capture_output=True, text=True, check=True)
    assert f"pid {os.getpid()}" in run.stdout
    assert str(directory.path) in run.stdout


def test_the_lock_can_be_taken_again_after_release(tmp_path: Path) -> None:
    first, second = (DataDirectory(tmp_path / "data").create() for _ in range(2))
    first.hold()
    with pytest.raises(DataDirectoryBusy):
        second.hold()
    first.release()
    second.hold()
    second.release()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="--data-dir"):
        DataDirectory(tmp_path / "file" / "data").create()
