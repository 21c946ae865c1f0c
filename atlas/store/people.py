"""Everybody with an account: in memory, which every change reaches before it returns, and in the ledger.

The ledger is read at start and written from here only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from atlas.errors import Conflict, NotFound, Unauthorized
from atlas.settings import LimitSettings
from atlas.store import rules
from atlas.store.audit import Change, record
from atlas.store.ledger import Ledger
from atlas.store.tables import refresh_tokens, sessions, users
from atlas.types import Limits, User, UserRole

Work = Callable[[sa.Connection], object]


class Account(NamedTuple):
    """A user and what nobody is shown."""

    user: User
    generation: int  # raised to end every session and access token
    password: str | None  # argon2id


class People:
    """The users of one ledger, their roles and limits. Safe from any thread."""

    def __init__(self, ledger: Ledger, *, limits: LimitSettings, clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._default_limits = _defaults(limits)
        self._clock = clock
        self._changing = threading.Lock()
        self._accounts = ledger.read(_load)
        self._logins: dict[str, str] = {}
        self._index()

    def owner(self) -> User:
        """The owner there has been longest: whose the first key is, and whose account set-up completes."""
        return self._owner

    def users(self) -> list[User]:
        """Everybody, oldest first, disabled ones included."""
        return sorted((account.user for account in list(self._accounts.values())), key=lambda user: user.created_at)

    def get(self, user_id: str) -> User:
        """Raises:
        NotFound: no user has this id.
        """
        return self.account(user_id).user

    def account(self, user_id: str) -> Account:
        """As `get`, for the rest of the store."""
        found = self._accounts.get(user_id)
        if found is None:
            raise NotFound(f"no user has the id '{user_id[:64]}'; `atlas users list` shows them")
        return found

    def update(
        self,
        user_id: str,
        *,
        actor: str,
        role: UserRole | None = None,
        limits: Limits | None = None,
        disabled: bool | None = None,
        email: str | None = None,
    ) -> User:
        """Change what is not None. Disabling ends the user's sessions and refuses their keys at once; enabling revives the keys.

        Raises:
            NotFound: no such user.
            Conflict: no enabled owner would be left, or the address is taken.
            BadRequest: a value does not fit.
        """
        with self._changing:
            before = self.account(user_id)
            changes = self._changes(before.user, role=role, limits=limits, disabled=disabled, email=email)
            user = msgspec.structs.replace(before.user, **changes)
            self._keep_an_owner(before.user, user)
            change = self._change(actor, "user.updated", user_id, **msgspec.to_builtins(changes))
            if not disabled:
                return self._save(before._replace(user=user), change)
            after = before._replace(user=user, generation=before.generation + 1)
            return self._save(after, change, lambda connection: end_sign_ins(connection, user_id))

    def use_limits(self, settings: LimitSettings) -> None:
        """From now on, the limits of users without their own."""
        self._default_limits = _defaults(settings)

    @property
    def default_limits(self) -> Limits:
        return self._default_limits

    def effective_limits(self, user: User) -> Limits:
        """The user's own limits, and the settings' where there is none."""
        if user.limits == Limits():
            return self._default_limits
        own = {name: value for name, value in msgspec.structs.asdict(user.limits).items() if value is not None}
        return msgspec.structs.replace(self._default_limits, **own)

    def sign_out(self, user_id: str, *, actor: str) -> None:
        """End every session, refresh and access token of the user."""
        with self._changing:
            account = self.account(user_id)
            self._save(
                account._replace(generation=account.generation + 1),
                self._change(actor, "user.signed_out", user_id),
                lambda connection: end_sign_ins(connection, user_id),
            )

    def _changes(
        self, user: User, *, role: UserRole | None, limits: Limits | None, disabled: bool | None, email: str | None
    ) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if role is not None:
            changes["role"] = role
        if limits is not None:
            rules.check_limits(limits)
            changes["limits"] = limits
        if disabled is not None:
            changes["disabled_at"] = (user.disabled_at or self._clock()) if disabled else None
        if email is not None:
            changes["email"] = self._free_email(user, rules.check_email(email))
        return changes

    def _keep_an_owner(self, before: User, after: User) -> None:
        if before.role != "owner" or before.disabled_at is not None or (after.role == "owner" and after.disabled_at is None):
            return
        others = (user for user in self.users() if user.id != before.id and user.role == "owner" and user.disabled_at is None)
        if not any(other.is_ready or not before.is_ready for other in others):
            raise Conflict(f"'{before.username}' is the only owner; make somebody else an owner first")

    def _named(self, user: User, profile: rules.Profile) -> User:
        if self._logins.get(rules.login_key(profile.username), user.id) != user.id:
            raise Conflict(f"the username '{profile.username}' is taken", param="username")
        email = self._free_email(user, profile.email)
        return msgspec.structs.replace(user, username=profile.username, email=email, is_ready=True)

    def _free_email(self, user: User, email: str) -> str:
        if email and self._logins.get(rules.login_key(email), user.id) != user.id:
            raise Conflict("another account has this e-mail address", param="email")
        return email

    def _change(self, actor: str, action: str, user_id: str, source: str = "", **detail: object) -> Change:
        return Change(at=self._clock(), actor=actor, action=action, object=user_id, source=source, detail=detail)

    def _save(self, account: Account, change: Change, *works: Work) -> User:
        """Write the account, its audit entry and `works` in one transaction, then let everybody see it. Hold `_changing`."""

        def work(connection: sa.Connection) -> None:
            for also in works:
                also(connection)
            _write(connection, account)
            record(connection, change)

        self._ledger.write(work).result()
        self._accounts[account.user.id] = account
        self._index()
        return account.user

    def _index(self) -> None:
        owners = (user for user in self.users() if user.role == "owner" and user.disabled_at is None)
        self._owner = next(owners)
        named = {rules.login_key(user.username): user.id for user in self.users() if user.username}
        self._logins = named | {rules.login_key(user.email): user.id for user in self.users() if user.email}


def _load(connection: sa.Connection) -> dict[str, Account]:
    return {row["id"]: _account(row) for row in connection.execute(sa.select(users)).mappings()}


def _account(row: sa.RowMapping) -> Account:
    user = User(
        id=row["id"],
        username=row["username"],
        email=row["email"],
        role=row["role"],
        limits=msgspec.convert(row["limits"], Limits),
        is_ready=row["password"] is not None,
        created_at=row["created_at"],
        disabled_at=row["disabled_at"],
    )
    return Account(user, row["generation"], row["password"])


def _write(connection: sa.Connection, account: Account) -> None:
    user = account.user
    values = {
        "username": user.username,
        "username_key": rules.login_key(user.username) or None,
        "email": user.email,
        "email_key": rules.login_key(user.email) or None,
        "role": user.role,
        "limits": msgspec.to_builtins(user.limits),
        "password": account.password,
        "generation": account.generation,
        "disabled_at": user.disabled_at,
    }
    if connection.execute(users.update().where(users.c.id == user.id).values(**values)).rowcount == 0:
        connection.execute(users.insert().values(id=user.id, created_at=user.created_at, **values))


def check_generation(connection: sa.Connection, user_id: str, generation: int | None) -> None:
    """In the transaction of a sign-in: whether it still is the generation in which the password was right; None asks nothing.

    Raises:
        Unauthorized: it is not; somebody who knew the old password only shall not come in beside a new one.
    """
    if generation is None:
        return
    now = connection.scalar(sa.select(users.c.generation).where(users.c.id == user_id))
    if now != generation:
        raise Unauthorized("The password has been changed meanwhile; sign in again.")


def end_sign_ins(connection: sa.Connection, user_id: str) -> None:
    connection.execute(sessions.delete().where(sessions.c.user_id == user_id))
    connection.execute(refresh_tokens.delete().where(refresh_tokens.c.user_id == user_id))


def _defaults(settings: LimitSettings) -> Limits:
    return Limits(
        requests_per_minute=settings.requests_per_minute or None,
        tokens_per_minute=settings.tokens_per_minute or None,
        concurrency=settings.concurrency or None,
        tokens_per_day=settings.tokens_per_day or None,
        tokens_per_month=settings.tokens_per_month or None,
    )
