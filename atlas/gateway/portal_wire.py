"""What the portal's routes take and give: V1's names where V1 had one, times in ISO 8601 (UTC).

Requests know exactly their fields: nobody makes themselves an administrator by sending a field more.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from atlas.gateway.wire import Wire
from atlas.store import KeyInfo
from atlas.types import Limits, User, UserRole

Secret = Annotated[str, Meta(max_length=1024)]  # a password or a one-time token; never in a reply to a wrong request
Name = Annotated[str, Meta(min_length=1, max_length=100)]
LoginName = Annotated[str, Meta(min_length=1, max_length=255)]
Limit = Annotated[int, Meta(ge=1, le=2**53)] | None
DAY_S = 86400.0


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """Base of every request."""


class LimitsBody(Asked, kw_only=True):
    """What a user or key may use; null or left out is no limit. Costs are in millionths of the currency."""

    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    concurrency: Limit = None
    tokens_per_day: Limit = None
    tokens_per_month: Limit = None
    cost_per_day: Limit = None
    cost_per_month: Limit = None

    def to_limits(self) -> Limits:
        return Limits(**msgspec.structs.asdict(self))


# -- people --


class Registration(Asked, kw_only=True):
    """`token` is an invitation's, or the set-up URL's; without `email` the invited one is taken."""

    token: Secret
    username: LoginName
    password: Secret
    email: Annotated[str, Meta(max_length=255)] = ""


class Credentials(Asked, kw_only=True):
    """`username` may be an e-mail address."""

    username: LoginName
    password: Secret


class RefreshBody(Asked, kw_only=True):
    refresh_token: Secret


class Logout(Asked, kw_only=True):
    refresh_token: Secret | None = None


class PasswordChange(Asked, kw_only=True):
    old_password: Secret
    new_password: Secret


class PasswordReset(Asked, kw_only=True):
    token: Secret
    password: Secret


class UserPatch(Asked, kw_only=True):
    """Only what is sent is changed; `limits` replaces all of them."""

    role: UserRole | None = None
    disabled: bool | None = None
    email: Annotated[str, Meta(max_length=255)] | None = None
    limits: LimitsBody | None = None


class Invite(Asked, kw_only=True):
    role: Literal["member", "admin"] = "member"
    email: Annotated[str, Meta(max_length=255)] = ""


class UserReply(Wire):
    id: str
    username: str
    email: str
    role: UserRole
    is_active: bool
    is_admin: bool
    created_at: datetime.datetime
    limits: Limits


class TokenPair(Wire):
    """`expires_in`: seconds of the access token; the refresh token is good for one use and gives the next pair."""

    access_token: str
    refresh_token: str
    expires_in: int
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - a word of OAuth's


class SignedIn(TokenPair, kw_only=True):
    user: UserReply


class UserList(Wire):
    users: list[UserReply]
    total: int


class SessionReply(Wire):
    id: str
    created_at: datetime.datetime
    expires_at: datetime.datetime
    source: str
    user_agent: str
    is_current: bool


class SessionList(Wire):
    sessions: list[SessionReply]
    total: int


class InvitationReply(Wire):
    """`token` and `path` come with the invitation's making only."""

    id: str
    role: UserRole
    email: str
    expires_at: datetime.datetime
    token: str | None = None
    path: str | None = None


class InvitationList(Wire):
    invitations: list[InvitationReply]
    total: int


class ResetReply(Wire):
    """Hand it to the user by a way you trust; it is good once, for a day."""

    token: str
    path: str


class Done(Wire):
    message: str


# -- keys --


class KeyBody(Asked, kw_only=True):
    """`rate_limit` is V1's name of `limits.requests_per_minute`."""

    name: Name
    rate_limit: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    expires_days: Annotated[int, Meta(ge=1, le=365)] | None = None
    scopes: Annotated[list[str], Meta(max_length=20)] | None = None
    models: Annotated[list[str], Meta(max_length=100)] | None = None
    allow_remote: bool = False
    limits: LimitsBody | None = None

    def to_limits(self) -> Limits:
        limits = self.limits.to_limits() if self.limits else Limits()
        return msgspec.structs.replace(limits, requests_per_minute=self.rate_limit) if self.rate_limit else limits


class KeyPatch(Asked, kw_only=True):
    """Only what is sent is changed; `models` null allows all, `limits` replaces all of them."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    scopes: Annotated[list[str], Meta(max_length=20)] | msgspec.UnsetType = msgspec.UNSET
    models: Annotated[list[str], Meta(max_length=100)] | msgspec.UnsetType | None = msgspec.UNSET
    allow_remote: bool | msgspec.UnsetType = msgspec.UNSET
    limits: LimitsBody | msgspec.UnsetType = msgspec.UNSET

    def changes(self) -> dict[str, Any]:
        sent = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not msgspec.UNSET}
        return sent | ({"limits": sent["limits"].to_limits()} if "limits" in sent else {})


class Rotation(Asked, kw_only=True):
    """`grace_s`: for how long the old key stays good, at most a week."""

    grace_s: Annotated[float, Meta(ge=0, le=7 * DAY_S)] = 0.0


class KeyReply(Wire):
    id: str
    name: str
    owner: str
    key_prefix: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    allow_remote: bool
    limits: Limits
    rate_limit: int | None
    is_active: bool
    created_at: datetime.datetime
    expires_at: datetime.datetime | None
    last_used_at: datetime.datetime | None
    revoked_at: datetime.datetime | None
    rotated_to: str | None


class MintedReply(KeyReply, kw_only=True):
    """`key` is shown this once."""

    key: str


class KeyList(Wire):
    keys: list[KeyReply]
    total: int


class KeyCheck(Asked, kw_only=True):
    api_key: Secret


class KeyVerdict(Wire):
    valid: bool
    user: str | None = None
    key_name: str | None = None
    rate_limit: int | None = None
    error: str | None = None


def moment(at: float) -> datetime.datetime:
    """Unix seconds as the wire has them."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).replace(microsecond=0)


def to_user(user: User) -> UserReply:
    return UserReply(
        id=user.id,
        username=user.username,
        email=user.email,
        role=user.role,
        is_active=user.disabled_at is None,
        is_admin=user.is_admin,
        created_at=moment(user.created_at),
        limits=user.limits,
    )


def to_key(info: KeyInfo) -> KeyReply:
    return KeyReply(**_key_fields(info))


def to_minted(key: str, info: KeyInfo) -> MintedReply:
    return MintedReply(**_key_fields(info), key=key)


def _key_fields(info: KeyInfo) -> dict[str, Any]:
    names = ("id", "name", "owner", "scopes", "models", "allow_remote", "limits", "is_active", "rotated_to")
    times = ("created_at", "expires_at", "last_used_at", "revoked_at")
    found = {name: getattr(info, name) for name in (*names, *times)}
    found |= {name: moment(found[name]) if found[name] is not None else None for name in times}
    is_active = info.is_active and info.revoked_at is None
    prefix = f"{info.prefix}...{info.last4}"
    return found | {"is_active": is_active, "key_prefix": prefix, "rate_limit": info.limits.requests_per_minute}
