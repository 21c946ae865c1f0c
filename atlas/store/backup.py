"""One consistent cut of a data directory as a tar file, and the way back.

Order, and why: ledger first, by the database's own means, so that it is one transaction's view; live state next, which may be
newer than the ledger and is rebuilt from it where they differ; blobs next, which are named by content and written before the
ledger mentions them, so that every one it mentions is there; secrets last, which do not change. MANIFEST.json closes the archive
with the SHA-256 of each file: an archive without it was cut short. Models are not part of it: they can be pulled again.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath

import msgspec
import sqlalchemy as sa

from atlas import __version__
from atlas.directory import DataDirectory
from atlas.errors import OperatorError

MANIFEST = "MANIFEST.json"
SQLITE_MEMBER, POSTGRES_MEMBER = "atlas.sqlite3", "ledger.pgdump"
LIVE, BLOBS, SECRETS, TLS = "live", "blobs", "secrets", "tls"
ANSWERS = f"{BLOBS}/responses"
FOLDERS = (BLOBS, SECRETS, TLS)  # in this order, after ledger and live state
CHUNK_BYTES = 1024 * 1024


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an archive holds.

    Attributes:
        version: of the ATLAS that wrote it.
        created_at: Unix seconds.
        ledger: the database the ledger was copied from; its URL is a setting, and is not in the archive.
        files: SHA-256 of each file, in the order in which they were copied.
    """

    version: str
    created_at: float
    ledger: str
    files: dict[str, str]


def write_backup(directory: DataDirectory, target: Path, *, ledger_url: str = "", live_url: str = "") -> Manifest:
    """Copy everything that cannot be made again to `target`, mode 0600: complete or not at all.

    Args:
        directory: held by this process, or by the running server that calls this.
        target: the tar file to write; must not exist.
        ledger_url: of PostgreSQL; empty for the SQLite file in the directory.
        live_url: of the private Valkey, if it runs; a server named by `redis.url` is its owner's to back up.

    Raises:
        OperatorError: the target exists or cannot be written, or the ledger cannot be copied.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        with _create(target, partial) as archive, tempfile.TemporaryDirectory() as scratch:
            files: dict[str, str] = {}
            for name, path in _members(directory, Path(scratch), ledger_url, live_url):
                with _may_be_gone(name):
                    files[name] = _add(archive, name, path)
            kind = "postgresql" if ledger_url else "sqlite"
            manifest = Manifest(version=__version__, created_at=time.time(), ledger=kind, files=files)
            _add_bytes(archive, MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        partial.replace(target)
    except OSError as error:
        raise OperatorError(f"backup to {target}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return manifest


def restore_backup(source: Path, directory: DataDirectory, *, ledger_url: str = "") -> Manifest:
    """Unpack an archive into an empty data directory. Nothing is written before the whole archive has been checked.

    Raises:
        OperatorError: the archive is damaged or incomplete, the directory is not empty, or the archive's ledger is of another
            kind than `ledger_url` says.
    """
    manifest = check_backup(source)
    if ledger_url and manifest.ledger == "sqlite":
        raise OperatorError(f'{source} holds a SQLite ledger, but ledger.url names a PostgreSQL; restore it with ledger.url = ""')
    if manifest.ledger == "postgresql" and not ledger_url:
        raise OperatorError(f"{source} holds a PostgreSQL ledger; name an empty database for it with ledger.url")
    if directory.path.exists() and any(directory.path.iterdir()):
        raise OperatorError(f"data directory {directory.path} is not empty; restore into a new one with --data-dir")
    directory.create()
    with tarfile.open(source) as archive:
        for name in manifest.files:
            _extract(archive, name, directory.path)
    if ledger_url:
        dump = directory.path / POSTGRES_MEMBER
        options = ["--no-owner", "--exit-on-error", "--single-transaction", "--dbname", _database(ledger_url)]
        _run(["pg_restore", *options, str(dump)], ledger_url)
        dump.unlink()
    return manifest


def check_backup(source: Path) -> Manifest:
    """Read the whole archive and compare every file with the manifest.

    Raises:
        OperatorError: it cannot be read, was cut short, or a file differs.
    """
    try:
        with tarfile.open(source) as archive:
            manifest = _manifest(source, archive)
            for name, expected in manifest.files.items():
                if _is_outside(name) or _digest(archive, name) != expected:
                    raise OperatorError(f"{source}: {name} is damaged; use another backup")
    except (OSError, tarfile.TarError, KeyError, EOFError) as error:
        raise OperatorError(f"{source} is not a whole backup ({error}); use another one") from None
    return manifest


def _members(directory: DataDirectory, scratch: Path, ledger_url: str, live_url: str) -> Iterator[tuple[str, Path]]:
    """(name in the archive, file), in the stated order; copies that must stand still lie in `scratch`."""
    if ledger_url:
        dump = scratch / POSTGRES_MEMBER
        _run(["pg_dump", "--format=custom", "--no-owner", "--file", str(dump), _database(ledger_url)], ledger_url)
        yield POSTGRES_MEMBER, dump
    else:
        copy = scratch / SQLITE_MEMBER
        _copy_sqlite(directory.ledger, copy)
        yield SQLITE_MEMBER, copy
    with _rewrites_off(live_url):
        yield from _files(directory.path / LIVE, LIVE)
    for folder in FOLDERS:
        yield from _files(directory.path / folder, folder)


def _copy_sqlite(ledger: Path, copy: Path) -> None:
    """SQLite's online backup: one read transaction, while the server goes on writing."""
    try:
        with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.Error as error:
        raise OperatorError(f"{ledger}: {error}") from None


@contextmanager
def _rewrites_off(live_url: str) -> Iterator[None]:
    """While an append-only file is copied, Valkey must not replace it; it may grow, and a cut last record is dropped at load.

    https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/#backing-up-aof-persistence
    """
    if not live_url:
        yield
        return
    import redis  # 160 ms, and needed here only

    with closing(redis.Redis.from_url(live_url, socket_timeout=5)) as client:
        setting = "auto-aof-rewrite-percentage"
        before = client.config_get(setting)[setting] or 0
        client.config_set(setting, 0)
        try:
            while client.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.05)
            yield
        finally:
            client.config_set(setting, before)


def _files(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """Regular files below `folder`; sockets, links, pid files and locks are no data."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and not path.is_symlink() and path.suffix != ".pid" and path.name != "lock":
            yield f"{prefix}/{path.relative_to(folder).as_posix()}", path


@contextmanager
def _create(target: Path, partial: Path) -> Iterator[tarfile.TarFile]:
    if target.exists():
        raise OperatorError(f"{target} exists; choose another name for the backup")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            yield archive
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _may_be_gone(name: str) -> Iterator[None]:
    """A blob of an answer may be taken back between being listed and being opened."""
    try:
        yield
    except FileNotFoundError:
        if not name.startswith(f"{ANSWERS}/"):
            raise


def _add(archive: tarfile.TarFile, name: str, path: Path) -> str:
    """Copy one file as it is now, however it grows meanwhile; its SHA-256."""
    with path.open("rb") as file:
        info = archive.gettarinfo(arcname=name, fileobj=file)
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        counted = _Hashing(file, info.size)
        archive.addfile(info, counted)
    return counted.hash.hexdigest()


class _Hashing(io.RawIOBase):
    """The first `size` bytes of a file, hashed on their way."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file, self._left = file, size
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        self.hash.update(data)
        return data


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
    archive.addfile(info, io.BytesIO(data))


def _manifest(source: Path, archive: tarfile.TarFile) -> Manifest:
    file = archive.extractfile(MANIFEST)  # KeyError if there is none
    assert file is not None
    try:
        return msgspec.json.decode(file.read(), type=Manifest)
    except msgspec.MsgspecError as error:
        raise OperatorError(f"{source}: {MANIFEST}: {error}") from None


def _digest(archive: tarfile.TarFile, name: str) -> str:
    file = archive.extractfile(name)
    if file is None:
        return "not a file"
    digest = hashlib.sha256()
    while data := file.read(CHUNK_BYTES):
        digest.update(data)
    return digest.hexdigest()


def _is_outside(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _extract(archive: tarfile.TarFile, name: str, folder: Path) -> None:
    """One checked file, readable by its owner only."""
    path = folder / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = archive.extractfile(name)
    assert file is not None
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as target:
        shutil.copyfileobj(file, target)


def _run(command: list[str], ledger_url: str) -> None:
    """A PostgreSQL tool; where the server is and its password travel in the environment, which others cannot read."""
    if shutil.which(command[0]) is None:
        raise OperatorError(f"{command[0]} is not on PATH; install PostgreSQL's client programs to back up a PostgreSQL ledger")
    environ = {**os.environ, **_libpq(ledger_url)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)  # noqa: S603  our own arguments
    if done.returncode != 0:
        raise OperatorError(f"{command[0]}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}")


def _database(ledger_url: str) -> str:
    return sa.make_url(ledger_url).database or "postgres"


def _libpq(ledger_url: str) -> dict[str, str]:
    """https://www.postgresql.org/docs/current/libpq-envars.html"""
    url = sa.make_url(ledger_url)
    host = url.host or url.query.get("host")
    values = {"PGHOST": host, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password}
    return {name: str(value) for name, value in values.items() if value}
