"""API keys: minted, verified, rotated, revoked.

Every key is in memory by its keyed hash; a change reaches the ledger first, then memory, before it returns. `verify` touches
neither disk nor lock.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType

from atlas.errors import BadRequest, Conflict, NotFound, Unauthorized
from atlas.store import rules
from atlas.store.accounts import Accounts
from atlas.store.audit import Change, record
from atlas.store.keys import KeyInfo, MintedKey, digest, is_well_formed, new_key
from atlas.store.ledger import Ledger
from atlas.store.tables import api_keys
from atlas.types import Limits, Principal, User

LAST_USED_RESOLUTION_S = 60.0  # a write per request would be a write for nothing


NO_LIMITS = Limits()
KEPT = ("name", "owner", "scopes", "models", "allow_remote", "limits", "expires_at")  # of a key that is rotated

_UNKNOWN = "Incorrect API key provided; `atlas keys create --name NAME` makes one."
_MISTYPED = "Incorrect API key provided: it is not complete, or mistyped; `atlas keys create --name NAME` makes one."


class _Seen(NamedTuple):
    """A principal and what it was made from: used again for as long as these are still the same objects."""

    info: KeyInfo | None  # None of the preset key
    user: User
    defaults: Limits
    principal: Principal


class Keys:
    """The keys of one ledger. Safe from any thread."""

    def __init__(
        self,
        ledger: Ledger,
        accounts: Accounts,
        pepper: bytes,
        *,
        preset: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._accounts = accounts
        self._pepper = pepper
        self._preset = digest(pepper, preset) if preset else None
        self._clock = clock
        self._changing = threading.Lock()
        self._infos = ledger.read(_load)
        self._digests = {info.id: hashed for hashed, info in self._infos.items()}
        self._last_used_s = {info.id: info.last_used_at for info in self._infos.values() if info.last_used_at is not None}
        self._seen: dict[bytes, _Seen] = {}
        self._preset_seen: _Seen | None = None

    def mint(
        self,
        name: str,
        *,
        owner: str | None = None,
        scopes: Sequence[str] = rules.DEFAULT_SCOPES,
        models: Sequence[str] | None = None,
        allow_remote: bool = False,
        limits: Limits = NO_LIMITS,
        expires_at: float | None = None,
        actor: str = "",
    ) -> MintedKey:
        """Make a key; its text is in the result and nowhere else.

        It belongs to the user `owner`, by default the owner account; `models` are the ids it may name, None for all;
        `allow_remote` lets its requests leave this machine; `expires_at` is in Unix seconds; `actor` is who makes it, by default
        its owner.

        Raises:
            BadRequest: a value does not fit; `param` names it.
            NotFound: no such user.
        """
        user = self._accounts.get(owner) if owner is not None else self._accounts.owner()
        rules.check_key_name(name)
        rules.check_limits(limits)
        rules.check_expiry(expires_at)
        key = new_key()
        info = self._new(
            key,
            name=name,
            owner=user.id,
            scopes=rules.check_scopes(scopes, user.role),
            models=rules.check_models(models),
            allow_remote=allow_remote,
            limits=limits,
            expires_at=expires_at,
        )
        with self._changing:
            self._save(digest(self._pepper, key), info, self._change(actor or user.id, "key.minted", info))
        return MintedKey(key, info)

    def rotate(self, key_id: str, *, grace_s: float = 0.0, actor: str) -> MintedKey:
        """Make a key that replaces this one in everything; this one is valid for `grace_s` more.

        Raises:
            NotFound: no key has this id.
            Conflict: it is revoked, expired, switched off or rotated already.
            BadRequest: `grace_s` is negative or more than a year.
        """
        if not 0.0 <= grace_s <= 366 * 86400.0:
            raise BadRequest("grace_s is between 0 and a year", param="grace_s")
        key = new_key()
        with self._changing:
            old = self.get(key_id)
            now_s = self._clock()
            if not old.is_valid(now_s) or old.rotated_to is not None:
                raise Conflict(f"key '{old.name}' is revoked, expired, switched off or rotated already; make a new one")
            info = self._new(key, **{name: getattr(old, name) for name in KEPT})
            ends = (
                {"revoked_at": now_s} if grace_s == 0.0 else {"expires_at": min(now_s + grace_s, old.expires_at or float("inf"))}
            )
            retired = msgspec.structs.replace(old, rotated_to=info.id, **ends)
            change = self._change(actor, "key.rotated", old, rotated_to=info.id, grace_s=grace_s)
            self._save(digest(self._pepper, key), info, change, (self._digests[key_id], retired))
        return MintedKey(key, info)

    def revoke(self, key_id: str, *, actor: str = "") -> KeyInfo:
        """End a key, at once and for good. Revoking twice changes nothing.

        Raises:
            NotFound: no key has this id.
        """
        with self._changing:
            info = self.get(key_id)
            if info.revoked_at is not None:
                return info
            return self._alter(info, self._change(actor or info.owner, "key.revoked", info), revoked_at=self._clock())

    def set_active(self, key_id: str, active: bool, *, actor: str) -> KeyInfo:
        """Switch a key off or on again.

        Raises:
            NotFound: no key has this id.
            Conflict: it is revoked, and stays so.
        """
        with self._changing:
            info = self.get(key_id)
            self._refuse_revoked(info)
            change = self._change(actor, "key.switched_on" if active else "key.switched_off", info)
            return self._alter(info, change, is_active=active)

    def update(
        self,
        key_id: str,
        *,
        actor: str,
        name: str | UnsetType = UNSET,
        scopes: Sequence[str] | UnsetType = UNSET,
        models: Sequence[str] | UnsetType | None = UNSET,
        allow_remote: bool | UnsetType = UNSET,
        limits: Limits | UnsetType = UNSET,
        expires_at: float | UnsetType | None = UNSET,
    ) -> KeyInfo:
        """Change what is given, at once.

        Raises:
            NotFound: no key has this id.
            Conflict: it is revoked.
            BadRequest: a value does not fit; `param` names it.
        """
        with self._changing:
            info = self.get(key_id)
            self._refuse_revoked(info)
            role = self._accounts.get(info.owner).role
            given = {
                "name": _checked_name(name),
                "scopes": scopes if scopes is UNSET else rules.check_scopes(scopes, role),
                "models": models if models is UNSET else rules.check_models(models),
                "allow_remote": allow_remote,
                "limits": _checked_limits(limits),
                "expires_at": _checked_expiry(expires_at),
            }
            values = {field: value for field, value in given.items() if value is not UNSET}
            return self._alter(info, self._change(actor, "key.updated", info, **msgspec.to_builtins(values)), **values)

    def list(self, owner: str | None = None) -> list[KeyInfo]:
        """Keys of one user, or of all; oldest first, revoked ones included."""
        infos = (self._shown(info) for info in list(self._infos.values()) if owner in (None, info.owner))
        return sorted(infos, key=lambda info: info.created_at)

    def get(self, key_id: str) -> KeyInfo:
        """Raises:
        NotFound: no key has this id.
        """
        hashed = self._digests.get(key_id)
        if hashed is None:
            raise NotFound(f"no key has the id '{key_id[:64]}'; `atlas keys list` shows them")
        return self._shown(self._infos[hashed])

    def verify(self, token: str) -> Principal:
        """Whose key this is, and what it may do. Its scopes are cut to what its owner's role allows now.

        Raises:
            Unauthorized: unknown, revoked, expired, switched off, or its owner disabled; the message does not repeat the token.
        """
        hashed = digest(self._pepper, token)
        if self._preset is not None and hmac.compare_digest(hashed, self._preset):
            return self._preset_principal()
        info = self._infos.get(hashed)
        if info is None:
            raise Unauthorized(_UNKNOWN if is_well_formed(token) else _MISTYPED)
        user = self._accounts.get(info.owner)
        now_s = self._clock()
        if user.disabled_at is not None or not info.is_valid(now_s):
            raise Unauthorized(f"API key '{info.name}' is {_why_not(info, now_s)}.")
        if now_s - self._last_used_s.get(info.id, 0.0) > LAST_USED_RESOLUTION_S:
            self._touch(info.id, now_s)
        seen, defaults = self._seen.get(hashed), self._accounts.default_limits
        if seen is None or seen.info is not info or seen.user is not user or seen.defaults is not defaults:
            seen = self._seen[hashed] = _Seen(info, user, defaults, self._principal(info, user))
        return seen.principal

    def _new(self, key: str, **values: Any) -> KeyInfo:
        return KeyInfo(id=f"key_{secrets.token_hex(8)}", prefix=key[:12], last4=key[-4:], created_at=self._clock(), **values)

    def _principal(self, info: KeyInfo, user: User) -> Principal:
        return Principal(
            owner=user.id,
            username=user.username,
            role=user.role,
            key_id=info.id,
            name=info.name,
            scopes=frozenset(info.scopes) & rules.role_scopes(user.role),
            models=None if info.models is None else frozenset(info.models),
            allow_remote=info.allow_remote,
            key_limits=info.limits,
            user_limits=self._accounts.effective_limits(user),
        )

    def _preset_principal(self) -> Principal:
        user, defaults = self._accounts.owner(), self._accounts.default_limits
        seen = self._preset_seen
        if seen is None or seen.user is not user or seen.defaults is not defaults:
            seen = self._preset_seen = _Seen(None, user, defaults, self._preset_of(user))
        return seen.principal

    def _preset_of(self, user: User) -> Principal:
        return Principal(
            owner=user.id,
            username=user.username,
            role=user.role,
            key_id="preset",
            name="ATLAS_API_KEY",
            scopes=rules.MEMBER_SCOPES,
            user_limits=self._accounts.effective_limits(user),
        )

    def _refuse_revoked(self, info: KeyInfo) -> None:
        if info.revoked_at is not None:
            raise Conflict(f"key '{info.name}' is revoked, which is for good; make a new one")

    def _change(self, actor: str, action: str, info: KeyInfo, **detail: object) -> Change:
        return Change(at=self._clock(), actor=actor, action=action, object=info.id, detail={"name": info.name, **detail})

    def _alter(self, info: KeyInfo, change: Change, **values: Any) -> KeyInfo:
        altered = msgspec.structs.replace(info, **values)
        self._save(self._digests[info.id], altered, change)
        return altered

    def _save(self, hashed: bytes, info: KeyInfo, change: Change, *others: tuple[bytes, KeyInfo]) -> None:
        """Write keys and audit entry in one transaction, then let everybody see them. Hold `_changing`."""
        keys = ((hashed, info), *others)

        def work(connection: sa.Connection) -> None:
            for key in keys:
                _write(connection, *key)
            record(connection, change)

        self._ledger.write(work).result()
        for key_hash, key_info in keys:
            self._digests[key_info.id] = key_hash
            self._infos[key_hash] = key_info

    def _shown(self, info: KeyInfo) -> KeyInfo:
        return msgspec.structs.replace(info, last_used_at=self._last_used_s.get(info.id))

    def _touch(self, key_id: str, now_s: float) -> None:
        """Note the use; the write is not waited for."""
        self._last_used_s[key_id] = now_s
        query = api_keys.update().where(api_keys.c.id == key_id).values(last_used_at=now_s)
        self._ledger.write(lambda connection: connection.execute(query))


def _why_not(info: KeyInfo, now_s: float) -> str:
    if info.revoked_at is not None:
        return "revoked"
    if info.expires_at is not None and now_s >= info.expires_at:
        return "expired"
    return "of a disabled user" if info.is_active else "switched off"


def _checked_name(name: str | UnsetType) -> str | UnsetType:
    if not isinstance(name, UnsetType):
        rules.check_key_name(name)
    return name


def _checked_limits(limits: Limits | UnsetType) -> Limits | UnsetType:
    if not isinstance(limits, UnsetType):
        rules.check_limits(limits)
    return limits


def _checked_expiry(expires_at: float | UnsetType | None) -> float | UnsetType | None:
    if not isinstance(expires_at, UnsetType):
        rules.check_expiry(expires_at)
    return expires_at


def _load(connection: sa.Connection) -> dict[bytes, KeyInfo]:
    return {bytes(row["digest"]): _info(row) for row in connection.execute(sa.select(api_keys)).mappings()}


def _info(row: sa.RowMapping) -> KeyInfo:
    return msgspec.convert({name: row[name] for name in KeyInfo.__struct_fields__}, KeyInfo)


def _write(connection: sa.Connection, hashed: bytes, info: KeyInfo) -> None:
    values = msgspec.to_builtins(info) | {"models": sa.null() if info.models is None else list(info.models)}
    del values["last_used_at"]  # written by `_touch` alone
    if connection.execute(api_keys.update().where(api_keys.c.id == info.id).values(**values)).rowcount == 0:
        connection.execute(api_keys.insert().values(digest=hashed, **values))
