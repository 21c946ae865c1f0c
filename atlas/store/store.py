"""The store: one ledger, and what is kept in it."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from atlas.directory import DataDirectory
from atlas.errors import LedgerUnavailable, OperatorError, SettingsError
from atlas.settings import AuthSettings, LedgerSettings, LimitSettings, Settings
from atlas.store.access import SIGNING_KEY_BYTES, AccessTokens
from atlas.store.accounts import Accounts
from atlas.store.audit import AuditLog
from atlas.store.database import Database, SQLite
from atlas.store.keyring import Keys
from atlas.store.keys import PRESET_MIN_CHARS
from atlas.store.ledger import CHECK_TIMEOUT_S, RETRY_AFTER_S, Ledger
from atlas.store.postgres import Postgres
from atlas.store.sessions import Sessions
from atlas.store.tables import meta
from atlas.store.tasks_book import TaskBook
from atlas.store.usage import UsageBook

PEPPER_BYTES = 32
DEFAULTS = Settings()


class Store:
    """Everything a ledger keeps, one attribute for each kind. Synchronous, and safe to call from any thread.

    Attributes:
        accounts: people.
        keys: API keys.
        sessions: signed-in people.
        usage: what requests may use and did use.
        audit: who changed what.
        tasks: long jobs, as a journal needs them.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        directory: DataDirectory,
        pepper: bytes,
        signing_key: bytes,
        settings: LedgerSettings = DEFAULTS.ledger,
        auth: AuthSettings = DEFAULTS.auth,
        limits: LimitSettings = DEFAULTS.limits,
        preset: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._directory = directory
        self._clock = clock
        self._making = threading.Lock()
        self.accounts = Accounts(ledger, auth=auth, limits=limits, clock=clock)
        self.keys = Keys(ledger, self.accounts, pepper, preset=preset, clock=clock)
        access = AccessTokens(ledger, self.accounts, signing_key, auth=auth, clock=clock)
        self.sessions = Sessions(ledger, self.accounts, access, auth=auth, clock=clock)
        self.usage = UsageBook(ledger, usage_days=settings.usage_days)
        self.audit = AuditLog(ledger)
        self.tasks = TaskBook(ledger, clock=clock)

    def check(self) -> None:
        """Write something small.

        Raises:
            LedgerUnavailable: that failed, or took more than five seconds.
        """
        try:
            self._ledger.write(lambda connection: _put(connection, "checked_at", str(self._clock()))).result(CHECK_TIMEOUT_S)
        except TimeoutError:
            raise LedgerUnavailable("the ledger is not writing; its disk may be stuck", retry_after_s=RETRY_AFTER_S) from None

    def secret(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Contents of `secrets/NAME` in the data directory, made when first asked for."""
        with self._making:
            kept = self._directory.read_secret(name)
            if kept is None:
                kept = make()
                self._directory.write_secret(name, kept)
            return kept

    def close(self) -> None:
        """Finish pending writes and close the ledger."""
        self._ledger.close()


def open_store(
    directory: DataDirectory,
    *,
    settings: LedgerSettings = DEFAULTS.ledger,
    auth: AuthSettings = DEFAULTS.auth,
    limits: LimitSettings = DEFAULTS.limits,
    preset_key: str | None = None,
    clock: Callable[[], float] = time.time,
) -> Store:
    """Open the ledger of a held directory, migrate it, make the secrets on first start.

    Raises:
        OperatorError: the ledger or its pepper is damaged, missing or newer than this version, or another server uses the ledger.
        SettingsError: `preset_key` is shorter than 16 characters.
    """
    assert directory.lock_fd is not None, "the ledger is opened under the directory's lock only"
    if preset_key is not None and len(preset_key) < PRESET_MIN_CHARS:
        raise SettingsError(f"ATLAS_API_KEY has {len(preset_key)} characters; it needs at least {PRESET_MIN_CHARS}")
    ledger = Ledger(_database(directory, settings))
    try:
        ledger.migrate()
        return Store(
            ledger,
            directory=directory,
            pepper=_pepper(directory, ledger),
            signing_key=_signing_key(directory),
            settings=settings,
            auth=auth,
            limits=limits,
            preset=preset_key,
            clock=clock,
        )
    except BaseException:
        ledger.close()
        raise


def _database(directory: DataDirectory, settings: LedgerSettings) -> Database:
    return Postgres(settings.url) if settings.url else SQLite(directory.ledger)


def _pepper(directory: DataDirectory, ledger: Ledger) -> bytes:
    """The key of the keyed hash. The ledger remembers its fingerprint, so that a lost or swapped pepper is noticed."""
    pepper = directory.read_secret("pepper")
    known = ledger.read(lambda connection: connection.scalar(sa.select(meta.c.value).where(meta.c.name == "pepper")))
    if known is None:
        pepper = pepper or secrets.token_bytes(PEPPER_BYTES)
        directory.write_secret("pepper", pepper)
        fingerprint = _fingerprint(pepper)
        ledger.write(lambda connection: _put(connection, "pepper", fingerprint)).result()
    elif pepper is None or _fingerprint(pepper) != known:
        raise OperatorError(
            f"{directory.secrets / 'pepper'} is {'missing' if pepper is None else 'not the one'} the API keys were made with; "
            f"restore it from a backup, or move {ledger.database.name} away to start with new keys"
        )
    assert pepper is not None
    return pepper


def _fingerprint(pepper: bytes) -> str:
    return hmac.digest(pepper, b"pepper fingerprint", "sha256").hex()


def _signing_key(directory: DataDirectory) -> bytes:
    """The key of access tokens. A lost one costs nothing but signing in again, so it is just made anew."""
    key = directory.read_secret("jwt")
    if key is None or len(key) < SIGNING_KEY_BYTES:
        key = secrets.token_bytes(SIGNING_KEY_BYTES)
        directory.write_secret("jwt", key)
    return key


def _put(connection: sa.Connection, name: str, value: str) -> None:
    if connection.execute(meta.update().where(meta.c.name == name).values(value=value)).rowcount == 0:
        connection.execute(meta.insert().values(name=name, value=value))
