"""What people may choose: names, addresses, passwords, scopes and limits. Pure."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, get_args

import msgspec

from atlas.errors import BadRequest
from atlas.types import Limits, Scope, UserRole

PASSWORD_MIN_CHARS = 12  # NIST SP 800-63B's advice is length and nothing else; 12 is this design's choice
PASSWORD_MAX_CHARS = 1024  # longer ones cost hashing time and protect nothing
EMAIL_MAX_CHARS = 255
DEFAULT_SCOPES: tuple[Scope, ...] = ("chat", "embeddings", "tasks", "projects", "read")
MEMBER_SCOPES = frozenset(DEFAULT_SCOPES) | {"interactive"}
ADMIN_SCOPES = MEMBER_SCOPES | {"admin"}
ALL_SCOPES = frozenset(get_args(Scope))

_USERNAME = re.compile(r"[A-Za-z0-9_.-]{3,50}")
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s.]+(\.[^@\s.]+)*")  # a shape, not proof that mail arrives


class Profile(NamedTuple):
    """A checked name and address."""

    username: str
    email: str


def login_key(login: str) -> str:
    """What a name or address is compared by."""
    return login.strip().casefold()


def check_profile(username: str, email: str) -> Profile:
    """Both, stripped.

    Raises:
        BadRequest: one has not the shape it needs; an address may be empty.
    """
    username = username.strip()
    if not _USERNAME.fullmatch(username):
        raise BadRequest("a username has 3 to 50 characters out of A-Z, a-z, 0-9, '_', '.', '-'", param="username")
    return Profile(username, check_email(email))


def check_email(email: str) -> str:
    """The address, stripped; empty for none.

    Raises:
        BadRequest: it does not look like one.
    """
    email = email.strip()
    is_long = max(len(email), len(login_key(email))) > EMAIL_MAX_CHARS
    if email and (is_long or not _is_printable(email) or not _EMAIL.fullmatch(email)):
        raise BadRequest(
            f"an e-mail address looks like name@example.org and has at most {EMAIL_MAX_CHARS} characters", param="email"
        )
    return email


def check_password(password: str) -> None:
    """Raises:
    BadRequest: too short or too long. Nothing else is asked of a password.
    """
    if not PASSWORD_MIN_CHARS <= len(password) <= PASSWORD_MAX_CHARS:
        raise BadRequest(f"a password has {PASSWORD_MIN_CHARS} to {PASSWORD_MAX_CHARS} characters", param="password")


def check_key_name(name: str) -> None:
    """Raises:
    BadRequest: empty, longer than 200 characters, or with control characters.
    """
    if not 1 <= len(name) <= 200 or not _is_printable(name):
        raise BadRequest("a key's name has 1 to 200 characters, none of them a control character", param="name")


def check_scopes(scopes: Sequence[str], role: UserRole) -> tuple[str, ...]:
    """The scopes without repetitions.

    Raises:
        BadRequest: one does not exist, or is not for a user of this role.
    """
    if unknown := [scope for scope in scopes if scope not in ALL_SCOPES]:
        raise BadRequest(f"there is no scope '{unknown[0][:50]}'; there are {', '.join(get_args(Scope))}", param="scopes")
    if beyond := [scope for scope in scopes if scope not in role_scopes(role)]:
        raise BadRequest(f"scope '{beyond[0]}' is for keys of administrators; this key's owner is a {role}", param="scopes")
    return tuple(dict.fromkeys(scopes))


def role_scopes(role: UserRole) -> frozenset[str]:
    """What keys of such a user may carry."""
    return MEMBER_SCOPES if role == "member" else ALL_SCOPES


def check_models(models: Sequence[str] | None) -> tuple[str, ...] | None:
    """The allow-list without repetitions; None for all models.

    Raises:
        BadRequest: a name is empty, long or unprintable, or the list is empty, which would allow nothing.
    """
    if models is None:
        return None
    if not models or any(not 1 <= len(name) <= 200 or not _is_printable(name) for name in models):
        raise BadRequest("a key's models are one or more model ids; leave them out to allow all", param="models")
    return tuple(dict.fromkeys(models))


def check_expiry(expires_at: float | None) -> None:
    """Raises:
    BadRequest: not a time; a database may read NaN back as "never".
    """
    if expires_at is not None and not math.isfinite(expires_at):
        raise BadRequest("expires_at is a time in Unix seconds", param="expires_at")


def check_limits(limits: Limits) -> None:
    """Raises:
    BadRequest: a limit below 1, which would forbid everything; disabling says that plainly.
    """
    for name, value in msgspec.structs.asdict(limits).items():
        if value is not None and value < 1:
            raise BadRequest(f"{name} is {value}; a limit is at least 1, and left out where there is none", param="limits")


def clipped(text: str, limit: int) -> str:
    """Text from outside as a column can hold it: no control characters, no lone surrogates, bounded."""
    return "".join(char if _is_printable(char) else "\N{REPLACEMENT CHARACTER}" for char in text[:limit])


def _is_printable(text: str) -> bool:
    return not any(unicodedata.category(char) in ("Cc", "Cs") for char in text)
