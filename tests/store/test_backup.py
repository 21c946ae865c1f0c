"""A backup restored is the same store: from SQLite and PostgreSQL, while somebody writes, and never half of it."""

from __future__ import annotations

import io
import shutil
import sqlite3
import tarfile
import threading
from pathlib import Path

import pytest

from atlas.directory import DataDirectory
from atlas.errors import OperatorError
from atlas.settings import LedgerSettings
from atlas.store import Store, open_store, restore_backup, write_backup
from tests.ledgers import fresh_database
from tests.store.conftest import PASSWORD, SOURCE, OpenStore, set_up


def restored(directory: DataDirectory, ledger_url: str = "") -> Store:
    directory.hold()
    return open_store(directory, settings=LedgerSettings(url=ledger_url))


def test_old_keys_passwords_and_blobs_work_after_a_restore(
    store: Store, directory: DataDirectory, ledger_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if ledger_url and shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not on PATH")
    user = set_up(store)
    key = store.keys.mint("old", owner=user.id).key
    (directory.path / "blobs").mkdir()
    (directory.path / "blobs" / "ab12").write_bytes(b"a blob")
    manifest = write_backup(directory, tmp_path / "backup.tar", ledger_url=ledger_url)
    assert next(iter(manifest.files)) in ("atlas.sqlite3", "ledger.pgdump")
    assert list(manifest.files)[1:] == ["blobs/ab12", "secrets/jwt", "secrets/pepper"]

    target = DataDirectory(tmp_path / "restored")
    if ledger_url:
        with fresh_database(request.getfixturevalue("postgres_server")) as other:
            restore_backup(tmp_path / "backup.tar", target, ledger_url=other)
            check_restored(restored(target, other), key)
    else:
        restore_backup(tmp_path / "backup.tar", target)
        check_restored(restored(target), key)
    assert (target.path / "blobs" / "ab12").read_bytes() == b"a blob"
    assert (target.path / "secrets" / "pepper").stat().st_mode & 0o777 == 0o600
    target.release()


def check_restored(store: Store, key: str) -> None:
    try:
        assert store.keys.verify(key).name == "old"
        assert store.accounts.authenticate("ana", PASSWORD, source=SOURCE).username == "ana"
        assert store.audit.verify() is None
    finally:
        store.close()


def test_a_backup_made_while_keys_are_minted_is_one_moments_view(
    reopen: OpenStore, directory: DataDirectory, tmp_path: Path
) -> None:
    """Each key is in it with its audit entry, or neither is."""
    store, stop, made = reopen(settings=LedgerSettings()), threading.Event(), list[str]()

    def mint() -> None:
        while not stop.is_set():
            made.append(store.keys.mint(f"key {len(made)}").info.id)

    writer = threading.Thread(target=mint)
    writer.start()
    try:
        while len(made) < 20:
            pass
        write_backup(directory, tmp_path / "backup.tar")
    finally:
        stop.set()
        writer.join()
    target = DataDirectory(tmp_path / "restored")
    restore_backup(tmp_path / "backup.tar", target)
    copy = restored(target)
    kept = [info.id for info in copy.keys.list()]
    assert len(kept) >= 20
    assert kept == made[: len(kept)]
    assert copy.audit.verify() is None
    noted = {entry.object for entry in copy.audit.entries(limit=10_000)}
    assert set(kept) <= noted
    copy.close()
    target.release()


def test_blobs_that_come_and_go_meanwhile_spoil_no_backup(directory: DataDirectory, tmp_path: Path) -> None:
    folder, stop = directory.path / "blobs/responses", threading.Event()
    folder.mkdir(parents=True)
    sqlite3.connect(directory.ledger).close()

    def churn() -> None:
        while not stop.is_set():
            for number in range(20):
                (folder / str(number)).write_bytes(b"x")
            for path in folder.iterdir():
                path.unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for number in range(100):
            write_backup(directory, tmp_path / f"{number}.tar")
    finally:
        stop.set()
        thread.join()


def backup_of(directory: DataDirectory, path: Path) -> Path:
    open_store(directory).close()
    write_backup(directory, path)
    return path


def test_nothing_is_overwritten(directory: DataDirectory, tmp_path: Path) -> None:
    path = backup_of(directory, tmp_path / "backup.tar")
    before = path.read_bytes()
    with pytest.raises(OperatorError, match=r"backup\.tar exists"):
        write_backup(directory, path)
    assert path.read_bytes() == before
    full = DataDirectory(tmp_path / "full").create()
    with pytest.raises(OperatorError, match=r"is not empty; restore into a new one"):
        restore_backup(path, full)


def test_a_backup_that_cannot_be_written_leaves_nothing(directory: DataDirectory, tmp_path: Path) -> None:
    open_store(directory).close()
    with pytest.raises(OperatorError, match=r"backup to .*nowhere.*: No such file"):
        write_backup(directory, tmp_path / "nowhere" / "backup.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_cut_archive_restores_nothing(directory: DataDirectory, tmp_path: Path, share: float) -> None:
    path = backup_of(directory, tmp_path / "backup.tar")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(OperatorError, match=r"not a whole backup|is damaged"):
        restore_backup(path, DataDirectory(tmp_path / "restored"))
    assert not (tmp_path / "restored").exists()


def test_a_changed_file_restores_nothing(directory: DataDirectory, tmp_path: Path) -> None:
    path = backup_of(directory, tmp_path / "backup.tar")
    data, pepper = path.read_bytes(), (directory.secrets / "pepper").read_bytes()
    path.write_bytes(data.replace(pepper, bytes(len(pepper))))
    with pytest.raises(OperatorError, match="secrets/pepper is damaged"):
        restore_backup(path, DataDirectory(tmp_path / "restored"))


def test_an_archive_cannot_write_outside_the_directory(directory: DataDirectory, tmp_path: Path) -> None:
    """A manifest that names a path outside is refused, whatever its hash."""
    path = backup_of(directory, tmp_path / "backup.tar")
    with tarfile.open(path) as archive:
        manifest = archive.extractfile("MANIFEST.json")
        assert manifest is not None
        text = manifest.read().replace(b"secrets/pepper", b"../../evil/pep")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name, data in (("../../evil/pep", b"x"), ("atlas.sqlite3", b"x"), ("MANIFEST.json", text)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(OperatorError, match="damaged"):
        restore_backup(tmp_path / "evil.tar", DataDirectory(tmp_path / "restored"))
    assert not (tmp_path.parent / "evil").exists()


def test_the_ledgers_kind_must_fit(directory: DataDirectory, tmp_path: Path) -> None:
    path = backup_of(directory, tmp_path / "backup.tar")
    with pytest.raises(OperatorError, match="holds a SQLite ledger"):
        restore_backup(path, DataDirectory(tmp_path / "restored"), ledger_url="postgresql://nobody@localhost/none")
