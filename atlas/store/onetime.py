"""One-time tokens: for set-up, invitations and password resets. 256 random bits, kept as SHA-256, gone once used.

The functions take the caller's connection, so that using a token and what it is used for are one transaction.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Literal

import msgspec
import sqlalchemy as sa

from atlas.errors import Unauthorized
from atlas.store.tables import one_time_tokens as table
from atlas.types import UserRole

Kind = Literal["setup", "invitation", "reset"]

_WAY_OUT: dict[Kind, str] = {
    "setup": "restarting the server prints a new link",
    "invitation": "ask for a new invitation",
    "reset": "ask for a new link",
}


class OneTime(msgspec.Struct, frozen=True, kw_only=True):
    """What a token stands for; times are Unix seconds."""

    id: str
    kind: Kind
    user_id: str | None
    role: UserRole
    email: str
    created_at: float
    expires_at: float


def new_token() -> str:
    """256 random bits as text for URLs and cookies."""
    return secrets.token_urlsafe(32)


def token_digest(token: str) -> bytes:
    """What is kept of a token. A fast hash suffices for random ones."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def put(connection: sa.Connection, token: str, entry: OneTime) -> None:
    """Keep a token; expired ones go at the same time."""
    connection.execute(table.delete().where(table.c.expires_at <= entry.created_at))
    connection.execute(table.insert().values(digest=token_digest(token), **msgspec.structs.asdict(entry)))


def find(connection: sa.Connection, token: str, kind: Kind, now_s: float) -> OneTime:
    """What the token stands for.

    Raises:
        Unauthorized: unknown, used, expired, or made for something else.
    """
    row = connection.execute(_columns().where(table.c.digest == token_digest(token), table.c.kind == kind)).mappings().first()
    if row is None or row["expires_at"] <= now_s:
        raise Unauthorized(f"This link is unknown, used or expired; {_WAY_OUT[kind]}.")
    return OneTime(**row)


def take(connection: sa.Connection, token: str, kind: Kind, now_s: float) -> OneTime:
    """As `find`, and the token is used up."""
    entry = find(connection, token, kind, now_s)
    connection.execute(table.delete().where(table.c.digest == token_digest(token)))
    return entry


def outstanding(connection: sa.Connection, kind: Kind, now_s: float) -> list[OneTime]:
    """Those that can still be used, oldest first."""
    query = _columns().where(table.c.kind == kind, table.c.expires_at > now_s).order_by(table.c.created_at)
    return [OneTime(**row) for row in connection.execute(query).mappings()]


def withdraw(connection: sa.Connection, kind: Kind, *, token_id: str | None = None, user_id: str | None = None) -> bool:
    """Forget the tokens of this kind, or one, or those of one user; whether there were any."""
    query = table.delete().where(table.c.kind == kind)
    if token_id is not None:
        query = query.where(table.c.id == token_id)
    if user_id is not None:
        query = query.where(table.c.user_id == user_id)
    return connection.execute(query).rowcount > 0


def _columns() -> sa.Select[tuple[object, ...]]:
    return sa.select(*(table.c[name] for name in OneTime.__struct_fields__))
