from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from atlas.directory import DataDirectory
from atlas.settings import LedgerSettings
from atlas.store import Journal, Store, open_store
from atlas.types import User
from tests.disks import mounted
from tests.ledgers import SERVER_URL, Cluster, fresh_database, postgres_binaries
from tests.store.journals import PAIRS, PATIENCE_S, Journals, Place, Servers, running

PASSWORD = "correct horse battery staple"
SOURCE = "192.0.2.7"

OpenStore = Callable[..., Store]


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DataDirectory]:
    directory = DataDirectory(tmp_path / "data").create()
    directory.hold()
    yield directory
    directory.release()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server."""
    if SERVER_URL:
        yield SERVER_URL
        return
    cluster = Cluster(_binaries())
    yield cluster.url
    cluster.remove()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server to be killed."""
    cluster = Cluster(_binaries())
    yield cluster
    cluster.remove()


def _binaries() -> Path:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: no initdb on PATH or in /usr/lib/postgresql/*/bin")
    return binaries


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty ledger of either kind; "" is SQLite in the data directory."""
    if request.param == "sqlite":
        yield ""
        return
    with fresh_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture
def reopen(directory: DataDirectory, ledger_url: str) -> Iterator[OpenStore]:
    """Opens the test's ledger; opened again, the one before is closed."""
    opened: list[Store] = []

    def open_again(**options: object) -> Store:
        while opened:
            opened.pop().close()
        settings = options.pop("settings", LedgerSettings(url=ledger_url))
        opened.append(open_store(directory, settings=settings, **options))  # type: ignore[arg-type]  # passed on as they are
        return opened[0]

    yield open_again
    while opened:
        opened.pop().close()


@pytest.fixture
def store(reopen: OpenStore) -> Store:
    return reopen()


@pytest.fixture(scope="session")
def redis_servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture(params=PAIRS)
def place(request: pytest.FixtureRequest, directory: DataDirectory, redis_servers: Servers) -> Iterator[Place]:
    """For a journal: ledgers and Redis servers of either kind, in pairs."""
    ledger, redis = PAIRS[request.param]
    if ledger == "sqlite":
        yield Place(directory, "", redis_servers.get(redis))
        return
    with fresh_database(request.getfixturevalue("postgres_server")) as url:
        yield Place(directory, url, redis_servers.get(redis))


@pytest.fixture
async def journals(place: Place, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Journals]:
    """Redis may take its time here, as it does on a busy machine; own_journals is for what happens then."""
    monkeypatch.setattr("atlas.store.journal.TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr("atlas.store.live_trust.WAIT_S", PATIENCE_S)
    journals = Journals(place)
    yield journals
    await journals.close()


@pytest.fixture
async def journal(journals: Journals) -> Journal:
    return await journals.open()


@pytest.fixture(params=[redis for _, redis in PAIRS.values() if redis != "url"])
async def own_journals(request: pytest.FixtureRequest, directory: DataDirectory) -> AsyncIterator[Journals]:
    """On SQLite, and a Redis server that a test may kill."""
    with running(request.param) as redis:
        journals = Journals(Place(directory, "", redis))
        yield journals
        await journals.close()


def set_up(store: Store, username: str = "ana") -> User:
    """Complete set-up; the owner."""
    token = store.accounts.setup_token()
    assert token is not None
    return store.accounts.complete_setup(
        token, username=username, email=f"{username}@example.org", password=PASSWORD, source=SOURCE
    )


def add_user(store: Store, username: str = "bob", **invitation: object) -> User:
    invited = store.accounts.invite(actor=store.accounts.owner().id, **invitation)  # type: ignore[arg-type]  # passed on
    return store.accounts.register(
        invited.token, username=username, email=f"{username}@example.org", password=PASSWORD, source=SOURCE
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", megabytes=4) as disk:
        yield disk
