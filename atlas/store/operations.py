"""What the command line may do to a store, as one table.

The running server executes these for its control socket; without a server the command executes them itself, on the data directory
it holds. Whoever may open either owns the machine's account, so there is nobody else to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from atlas.errors import BadRequest, NotFound
from atlas.store.keys import KeyInfo
from atlas.store.store import Store
from atlas.types import Limits, Scope, User, UserRole

ACTOR = "operator"  # in the audit log: the person at the command line
PAGE = 500  # of single usage rows: an answer on the control socket is one line of at most 1 MiB


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of one operation; `user` is a username, an e-mail address or an id, and "" the owner."""


class CreateKey(Params, frozen=True, kw_only=True):
    name: str
    user: str = ""
    scopes: tuple[Scope, ...] | None = None
    models: tuple[str, ...] | None = None
    allow_remote: bool = False
    limits: Limits = Limits()
    expires_at: float | None = None


class RotateKey(Params, frozen=True, kw_only=True):
    id: str
    grace_s: float = 0.0


class RevokeKey(Params, frozen=True, kw_only=True):
    id: str


class Invite(Params, frozen=True, kw_only=True):
    role: UserRole = "member"
    email: str = ""


class OfUser(Params, frozen=True, kw_only=True):
    user: str


class UpdateUser(Params, frozen=True, kw_only=True):
    user: str
    role: UserRole | None = None
    limits: Limits | None = None
    disabled: bool | None = None


class Totals(Params, frozen=True, kw_only=True):
    since: float
    until: float
    group: Literal["key", "user", "model", "day", "hour"] = "day"
    user: str | UnsetType = UNSET


class Recent(Params, frozen=True, kw_only=True):
    before: tuple[float, str] | None = None
    user: str | UnsetType = UNSET


class Nothing(Params, frozen=True, kw_only=True):
    """No parameters."""


def run_operation(store: Store, method: str, params: dict[str, Any]) -> Any:
    """Execute one operation and wait for the ledger; the result is plain data.

    Raises:
        BadRequest: no such operation, or wrong parameters.
    """
    if method not in OPERATIONS:
        raise BadRequest(f"no operation {method!r}; there are: {', '.join(OPERATIONS)}")
    work, kind = OPERATIONS[method]
    try:
        wanted = msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{method}: {error}") from None
    return msgspec.to_builtins(work(store, wanted))


def find_user(store: Store, name: str) -> User:
    """Raises NotFound: nobody is called that."""
    if not name:
        return store.accounts.owner()
    for user in store.accounts.users():
        if name == user.id or name.lower() in (user.username.lower(), user.email.lower()):
            return user
    raise NotFound(f"no user is called {name!r}; `atlas users list` shows them")


def _create_key(store: Store, wanted: CreateKey) -> dict[str, Any]:
    chosen: dict[str, Any] = {} if wanted.scopes is None else {"scopes": wanted.scopes}
    made = store.keys.mint(
        wanted.name,
        owner=find_user(store, wanted.user).id,
        models=wanted.models,
        allow_remote=wanted.allow_remote,
        limits=wanted.limits,
        expires_at=wanted.expires_at,
        actor=ACTOR,
        **chosen,
    )
    return {"key": made.key, "info": made.info}


def _rotate_key(store: Store, wanted: RotateKey) -> dict[str, Any]:
    made = store.keys.rotate(wanted.id, grace_s=wanted.grace_s, actor=ACTOR)
    return {"key": made.key, "info": made.info}


def _revoke_key(store: Store, wanted: RevokeKey) -> dict[str, KeyInfo]:
    return {"key": store.keys.revoke(wanted.id, actor=ACTOR)}


def _list_keys(store: Store, _wanted: Nothing) -> dict[str, Any]:
    return {"keys": store.keys.list()}


def _list_users(store: Store, _wanted: Nothing) -> dict[str, Any]:
    return {"users": store.accounts.users(), "invitations": store.accounts.invitations()}


def _invite(store: Store, wanted: Invite) -> dict[str, Any]:
    made = store.accounts.invite(actor=ACTOR, role=wanted.role, email=wanted.email)
    return {"path": f"/register?token={made.token}", "expires_at": made.expires_at}


def _reset(store: Store, wanted: OfUser) -> dict[str, str]:
    user = find_user(store, wanted.user)
    return {"path": f"/reset?token={store.accounts.reset_token(user.id, actor=ACTOR)}"}


def _set_up(store: Store, _wanted: Nothing) -> dict[str, str | None]:
    token = store.accounts.setup_token()
    return {"path": token and f"/setup?token={token}"}


def _update_user(store: Store, wanted: UpdateUser) -> dict[str, User]:
    user = find_user(store, wanted.user)
    changed = store.accounts.update(user.id, actor=ACTOR, role=wanted.role, limits=wanted.limits, disabled=wanted.disabled)
    return {"user": changed}


def _totals(store: Store, wanted: Totals) -> dict[str, Any]:
    owner = None if wanted.user is UNSET else find_user(store, wanted.user).id
    return {"totals": store.usage.totals(since=wanted.since, until=wanted.until, group=wanted.group, owner=owner)}


def _recent(store: Store, wanted: Recent) -> dict[str, Any]:
    owner = None if wanted.user is UNSET else find_user(store, wanted.user).id
    return {"usage": store.usage.recent(limit=PAGE, before=wanted.before, owner=owner)}


def _verify_audit(store: Store, _wanted: Nothing) -> dict[str, int | None]:
    return {"first_broken": store.audit.verify()}


OPERATIONS: dict[str, tuple[Callable[[Store, Any], Any], type[Params]]] = {
    "keys.create": (_create_key, CreateKey),
    "keys.list": (_list_keys, Nothing),
    "keys.revoke": (_revoke_key, RevokeKey),
    "keys.rotate": (_rotate_key, RotateKey),
    "users.list": (_list_users, Nothing),
    "users.invite": (_invite, Invite),
    "users.reset": (_reset, OfUser),
    "users.setup": (_set_up, Nothing),
    "users.update": (_update_user, UpdateUser),
    "usage.totals": (_totals, Totals),
    "usage.recent": (_recent, Recent),
    "audit.verify": (_verify_audit, Nothing),
}
