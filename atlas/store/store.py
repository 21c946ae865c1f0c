"""The store: keys minted, verified, revoked."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from atlas.errors import BadRequest, NotFound, OperatorError, SettingsError, Unauthorized
from atlas.store.directory import DataDirectory
from atlas.store.keys import PRESET_MIN_CHARS, KeyInfo, MintedKey, digest, is_well_formed, new_key
from atlas.store.ledger import Ledger
from atlas.store.tables import api_keys, meta
from atlas.types import Principal

DEFAULT_SCOPES = ("chat",)
LAST_USED_RESOLUTION_S = 60.0  # a write per request would be a write for nothing
PEPPER_BYTES = 32


class Store:
    """Keys of one data directory. Safe to call from any thread; `verify` never touches the disk's locks.

    Verification reads a map in memory, which `mint` and `revoke` change before they return.
    """

    def __init__(
        self, ledger: Ledger, pepper: bytes, *, preset: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._ledger = ledger
        self._pepper = pepper
        self._clock = clock
        self._keys = ledger.read(_load)
        self._changing = threading.Lock()
        self._preset = digest(pepper, preset) if preset else None

    def mint(
        self, name: str, *, owner: str = "owner", scopes: Sequence[str] = DEFAULT_SCOPES, expires_at: float | None = None
    ) -> MintedKey:
        """Make a key; its text is in the result and nowhere else.

        Raises:
            BadRequest: the name is empty or longer than 200 characters.
        """
        if not 1 <= len(name) <= 200:
            raise BadRequest("a key's name has 1 to 200 characters", param="name")
        key = new_key()
        info = KeyInfo(
            id=f"key_{secrets.token_hex(8)}",
            name=name,
            owner=owner,
            scopes=tuple(scopes),
            prefix=key[:12],
            last4=key[-4:],
            created_at=self._clock(),
            expires_at=expires_at,
        )
        hashed = digest(self._pepper, key)
        self._ledger.write(lambda connection: _insert(connection, hashed, info)).result()
        self._keys[hashed] = info
        return MintedKey(key, info)

    def revoke(self, key_id: str) -> KeyInfo:
        """End a key, at once and for good. Revoking twice changes nothing.

        Raises:
            NotFound: no key has this id.
        """
        hashed, info = self._find(key_id)
        if info.revoked_at is None:
            info = self._change(hashed, info, revoked_at=self._clock())
        return info

    def list(self) -> list[KeyInfo]:
        """Every key, oldest first, revoked ones included."""
        return sorted(self._keys.values(), key=lambda info: info.created_at)

    def verify(self, token: str) -> Principal:
        """Whose key this is.

        Raises:
            Unauthorized: unknown, revoked or expired; the message does not repeat the token.
        """
        hashed = digest(self._pepper, token)
        if self._preset is not None and hmac.compare_digest(hashed, self._preset):
            return Principal(key_id="preset", name="ATLAS_API_KEY", owner="owner", scopes=frozenset(DEFAULT_SCOPES))
        info = self._keys.get(hashed) if is_well_formed(token) else None
        if info is None:
            raise Unauthorized("Incorrect API key provided; `atlas keys create --name NAME` makes one.")
        now_s = self._clock()
        if not info.is_valid(now_s):
            raise Unauthorized(f"API key '{info.name}' is {'expired' if info.revoked_at is None else 'revoked'}.")
        if now_s - (info.last_used_at or 0.0) > LAST_USED_RESOLUTION_S:
            self._touch(hashed, info, now_s)
        return Principal(key_id=info.id, name=info.name, owner=info.owner, scopes=frozenset(info.scopes))

    def close(self) -> None:
        """Finish pending writes and close the ledger."""
        self._ledger.close()

    def _find(self, key_id: str) -> tuple[bytes, KeyInfo]:
        for hashed, info in list(self._keys.items()):  # a copy: other threads mint
            if info.id == key_id:
                return hashed, info
        raise NotFound(f"no key has the id '{key_id}'; `atlas keys list` shows them")

    def _change(self, hashed: bytes, info: KeyInfo, **values: float) -> KeyInfo:
        with self._changing:
            changed = self._keys[hashed] = _with(self._keys[hashed], values)
        self._ledger.write(lambda connection: _update(connection, info.id, values)).result()
        return changed

    def _touch(self, hashed: bytes, info: KeyInfo, now_s: float) -> None:
        """Note the use; the write is not waited for."""
        with self._changing:  # from the map again: a revocation may have come in between, and must not be undone
            self._keys[hashed] = _with(self._keys[hashed], {"last_used_at": now_s})
        self._ledger.write(lambda connection: _update(connection, info.id, {"last_used_at": now_s}))


def open_store(directory: DataDirectory, *, preset_key: str | None = None) -> Store:
    """Open the ledger of a held directory, migrate it, make the pepper on first start.

    Raises:
        OperatorError: the ledger or its pepper is damaged, missing or newer than this version.
        SettingsError: `preset_key` is shorter than 16 characters.
    """
    assert directory.lock_fd is not None, "the ledger is opened under the directory's lock only"
    if preset_key is not None and len(preset_key) < PRESET_MIN_CHARS:
        raise SettingsError(f"ATLAS_API_KEY has {len(preset_key)} characters; it needs at least {PRESET_MIN_CHARS}")
    ledger = Ledger(directory.ledger)
    try:
        ledger.migrate()
        return Store(ledger, _pepper(directory, ledger), preset=preset_key)
    except BaseException:
        ledger.close()
        raise


def _pepper(directory: DataDirectory, ledger: Ledger) -> bytes:
    """The key of the keyed hash. The ledger remembers its fingerprint, so that a lost or swapped pepper is noticed."""
    pepper = directory.read_secret("pepper")
    known = ledger.read(lambda connection: connection.scalar(sa.select(meta.c.value).where(meta.c.name == "pepper")))
    if known is None:
        pepper = pepper or secrets.token_bytes(PEPPER_BYTES)
        directory.write_secret("pepper", pepper)
        ledger.write(
            lambda connection: connection.execute(meta.insert().values(name="pepper", value=_fingerprint(pepper)))
        ).result()
    elif pepper is None or _fingerprint(pepper) != known:
        raise OperatorError(
            f"{directory.secrets / 'pepper'} is {'missing' if pepper is None else 'not the one'} the API keys were made with; "
            f"restore it from a backup, or move {directory.ledger} away to start with new keys"
        )
    assert pepper is not None
    return pepper


def _fingerprint(pepper: bytes) -> str:
    return hmac.digest(pepper, b"pepper fingerprint", "sha256").hex()


def _load(connection: sa.Connection) -> dict[bytes, KeyInfo]:
    return {bytes(row["digest"]): _info(row) for row in connection.execute(sa.select(api_keys)).mappings()}


def _info(row: sa.RowMapping) -> KeyInfo:
    values = {name: row[name] for name in KeyInfo.__struct_fields__}
    return KeyInfo(**{**values, "scopes": tuple(values["scopes"])})


def _with(info: KeyInfo, values: dict[str, float]) -> KeyInfo:
    return KeyInfo(**{**{name: getattr(info, name) for name in KeyInfo.__struct_fields__}, **values})


def _insert(connection: sa.Connection, hashed: bytes, info: KeyInfo) -> None:
    values = {name: getattr(info, name) for name in KeyInfo.__struct_fields__}
    connection.execute(api_keys.insert().values(digest=hashed, **{**values, "scopes": list(info.scopes)}))


def _update(connection: sa.Connection, key_id: str, values: dict[str, float]) -> None:
    connection.execute(api_keys.update().where(api_keys.c.id == key_id).values(**values))
