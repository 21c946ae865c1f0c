"""Tokens for programs that sign in as a person: short JWTs, and refresh tokens that are replaced at every use.

An access token names a user and nothing else that counts: role and limits are looked up, so disabling or signing out a user takes
effect at once. A refresh token that comes back after it was used has been copied; its whole family ends.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import jwt
import msgspec
import sqlalchemy as sa

from atlas.errors import NotFound, Unauthorized
from atlas.settings import AuthSettings
from atlas.store.accounts import Accounts
from atlas.store.ledger import Ledger
from atlas.store.onetime import new_token, token_digest
from atlas.store.people import Account, check_generation
from atlas.store.rules import clipped
from atlas.store.tables import refresh_tokens as table
from atlas.types import User

ALGORITHM = "HS256"  # the only one accepted, whatever a token's header says
ISSUER = AUDIENCE = "atlas"
REQUIRED = ["iss", "aud", "exp", "iat", "jti", "sub", "typ"]
SIGNING_KEY_BYTES = 32


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What a program keeps after signing in.

    Attributes:
        expires_in_s: life of `access`.
    """

    access: str
    refresh: str
    expires_in_s: float


class AccessTokens:
    """Issues, refreshes and checks. Safe from any thread; checking does not touch the disk."""

    def __init__(
        self,
        ledger: Ledger,
        accounts: Accounts,
        signing_key: bytes,
        *,
        auth: AuthSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._accounts = accounts
        self._signing_key = signing_key
        self._auth = auth
        self._clock = clock

    def issue(self, user: User, *, source: str, generation: int | None = None) -> Tokens:
        """Both tokens, of a new family.

        Raises:
            Unauthorized: as `Sessions.open`.
        """
        account = self._accounts.account(user.id)
        if account.user.disabled_at is not None:
            raise Unauthorized("This account is disabled; ask an administrator.")
        refresh = new_token()
        row = self._row(refresh, family=f"fam_{secrets.token_hex(8)}", user_id=user.id, source=source)

        def work(connection: sa.Connection) -> None:
            check_generation(connection, user.id, generation)
            connection.execute(table.delete().where(table.c.expires_at <= row["created_at"]))
            connection.execute(table.insert().values(**row))

        self._ledger.write(work).result()
        return self._tokens(account if generation is None else account._replace(generation=generation), refresh)

    def refresh(self, refresh_token: str, *, source: str) -> Tokens:
        """Both tokens anew; the one given is used up.

        Raises:
            Unauthorized: unknown, expired, or its user disabled; or used before, which ends its family.
        """
        fresh = new_token()
        account = self._ledger.write(lambda connection: self._rotate(connection, refresh_token, fresh, source)).result()
        if account is None:
            raise Unauthorized("The refresh token is unknown, used or expired; sign in again.")
        return self._tokens(account, fresh)

    def revoke(self, refresh_token: str) -> None:
        """End the token's family; an unknown one is no error."""
        digest = token_digest(refresh_token)
        family = sa.select(table.c.family).where(table.c.digest == digest).scalar_subquery()
        self._ledger.write(lambda connection: connection.execute(table.delete().where(table.c.family == family))).result()

    def verify(self, token: str) -> User:
        """Whose access token this is.

        Raises:
            Unauthorized: not one of ours, expired, or its user disabled or signed out since.
        """
        try:
            claims = jwt.decode(
                token,
                self._signing_key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"require": REQUIRED, "strict_aud": True},
            )
        except (jwt.PyJWTError, UnicodeError):
            raise Unauthorized("The access token is not valid or has expired; refresh it or sign in again.") from None
        if claims["typ"] != "access":
            raise Unauthorized("This token is not an access token.")
        return self._user(claims["sub"], claims.get("gen"))

    def _user(self, user_id: str, generation: object) -> User:
        try:
            account = self._accounts.account(user_id)
        except NotFound:
            raise Unauthorized("The access token's user does not exist.") from None
        if account.user.disabled_at is not None or account.generation != generation:
            raise Unauthorized("The access token's user was signed out or disabled; sign in again.")
        return account.user

    def _rotate(self, connection: sa.Connection, token: str, fresh: str, source: str) -> Account | None:
        """Replace the token within its family; its account, or None if the token is not accepted."""
        row = connection.execute(sa.select(table).where(table.c.digest == token_digest(token))).first()
        if row is None:
            return None
        if row.used_at is not None:
            connection.execute(table.delete().where(table.c.family == row.family))
            return None
        now_s = self._clock()
        account = self._accounts.account(row.user_id)
        if row.expires_at <= now_s or account.user.disabled_at is not None:
            return None
        connection.execute(table.update().where(table.c.digest == row.digest).values(used_at=now_s))
        connection.execute(table.insert().values(**self._row(fresh, family=row.family, user_id=row.user_id, source=source)))
        return account

    def _row(self, token: str, *, family: str, user_id: str, source: str) -> dict[str, object]:
        now_s = self._clock()
        return {
            "digest": token_digest(token),
            "family": family,
            "user_id": user_id,
            "created_at": now_s,
            "expires_at": now_s + self._auth.refresh_token_s,
            "source": clipped(source, 64),
        }

    def _tokens(self, account: Account, refresh: str) -> Tokens:
        now_s = self._clock()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": account.user.id,
            "typ": "access",
            "jti": secrets.token_hex(16),
            "iat": int(now_s),
            "exp": int(now_s + self._auth.access_token_s),
            "gen": account.generation,
        }
        access = jwt.encode(claims, self._signing_key, algorithm=ALGORITHM)
        return Tokens(access=access, refresh=refresh, expires_in_s=self._auth.access_token_s)
