"""People: set-up, invitations, sign-in, roles, limits.

All accounts are in memory, which every change reaches before it returns; the ledger is read at start and written from here only.
Not covered: proof that an e-mail address is its owner's, and second factors.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from atlas.errors import Conflict, NotFound, Unauthorized
from atlas.settings import AuthSettings, LimitSettings
from atlas.store import onetime, rules
from atlas.store.audit import Change, record
from atlas.store.ledger import Ledger
from atlas.store.onetime import Kind, OneTime
from atlas.store.passwords import Passwords
from atlas.store.tables import refresh_tokens, sessions, users
from atlas.store.throttle import Throttle
from atlas.types import Limits, User, UserRole

SETUP_TOKEN_S = 1800.0  # long enough to find the browser; chosen
RESET_TOKEN_S = 86400.0  # an administrator hands it over by whatever way they have; chosen

Work = Callable[[sa.Connection], object]


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """An account somebody may make.

    Attributes:
        token: in the answer to `invite` only; empty in lists.
        expires_at: Unix seconds.
    """

    id: str
    role: UserRole
    email: str
    created_at: float
    expires_at: float
    token: str = ""


class Account(NamedTuple):
    """A user and what nobody is shown."""

    user: User
    generation: int  # raised to end every session and access token
    password: str | None  # argon2id


class Accounts:
    """The users of one ledger. Safe from any thread; whatever takes a password blocks for about 25 ms."""

    def __init__(
        self, ledger: Ledger, *, auth: AuthSettings, limits: LimitSettings, clock: Callable[[], float] = time.time
    ) -> None:
        self._ledger = ledger
        self._auth = auth
        self._default_limits = _defaults(limits)
        self._clock = clock
        self._passwords = Passwords()
        self._throttle = Throttle()
        self._changing = threading.Lock()
        self._accounts = ledger.read(_load)
        self._logins: dict[str, str] = {}
        self._index()

    # -- set-up ------------------------------------------------------------------------------------------------------------

    def owner(self) -> User:
        """The owner there has been longest: whose the first key is, and whose account set-up completes."""
        return min(
            (user for user in self.users() if user.role == "owner" and user.disabled_at is None), key=lambda user: user.created_at
        )

    def setup_pending(self) -> bool:
        """Whether nobody has completed set-up yet."""
        return not self.owner().is_ready

    def setup_token(self) -> str | None:
        """A fresh token for the set-up URL, good for half an hour; earlier ones stop working. None once set up."""
        if not self.setup_pending():
            return None
        token = onetime.new_token()
        entry = self._one_time("setup", SETUP_TOKEN_S, role="owner", user_id=self.owner().id)

        def work(connection: sa.Connection) -> None:
            onetime.withdraw(connection, "setup")
            onetime.put(connection, token, entry)

        self._ledger.write(work).result()
        return token

    def complete_setup(self, token: str, *, username: str, email: str, password: str, source: str) -> User:
        """Give the owner account its name and password. Of any number of callers exactly one succeeds.

        Raises:
            Conflict: set up already.
            Unauthorized: the token is wrong, used or expired.
            TooManyAttempts: too many wrong ones from this source.
            BadRequest: a value does not fit; `param` names it.
        """
        if not self.setup_pending():
            raise Conflict("ATLAS is set up already; sign in instead")
        profile = rules.check_profile(username, email)
        rules.check_password(password)
        self._look(token, "setup", source)
        hashed = self._passwords.hash(password)
        with self._changing:
            if not self.setup_pending():
                raise Conflict("ATLAS is set up already; sign in instead")
            before = self._accounts[self.owner().id]
            user = self._named(before.user, profile)
            return self._save(
                before._replace(user=user, password=hashed),
                self._change(user.id, "setup.completed", user.id, source),
                lambda connection: onetime.take(connection, token, "setup", self._clock()),
            )

    # -- invitations and resets --------------------------------------------------------------------------------------------

    def invite(self, *, actor: str, role: UserRole = "member", email: str = "") -> Invitation:
        """Let somebody make an account; for as long as `auth.invitation_s` says.

        Raises:
            BadRequest: `email` is not one.
        """
        token = onetime.new_token()
        entry = self._one_time("invitation", self._auth.invitation_s, role=role, email=rules.check_email(email))
        change = self._change(actor, "invitation.made", entry.id, role=role, email=entry.email)

        def work(connection: sa.Connection) -> None:
            onetime.put(connection, token, entry)
            record(connection, change)

        self._ledger.write(work).result()
        return _invitation(entry, token)

    def invitations(self) -> list[Invitation]:
        """Those that can still be followed, oldest first."""
        found = self._ledger.read(lambda connection: onetime.outstanding(connection, "invitation", self._clock()))
        return [_invitation(entry) for entry in found]

    def withdraw_invitation(self, invitation_id: str, *, actor: str) -> None:
        """Raises:
        NotFound: no such invitation, or it has been followed.
        """
        change = self._change(actor, "invitation.withdrawn", invitation_id)

        def work(connection: sa.Connection) -> None:
            if not onetime.withdraw(connection, "invitation", token_id=invitation_id):
                raise NotFound(f"no invitation has the id '{invitation_id}'; it may have been followed")
            record(connection, change)

        self._ledger.write(work).result()

    def register(self, token: str, *, username: str, email: str, password: str, source: str) -> User:
        """Make an account by invitation; an empty `email` means the invited one.

        Raises:
            Unauthorized: the invitation is unknown, used, withdrawn or expired.
            Conflict: the name or address is taken.
            TooManyAttempts, BadRequest: as `complete_setup`.
        """
        profile = rules.check_profile(username, email)
        rules.check_password(password)
        entry = self._look(token, "invitation", source)
        hashed = self._passwords.hash(password)
        user = User(id=f"usr_{secrets.token_hex(8)}", role=entry.role, created_at=self._clock())
        with self._changing:
            user = self._named(user, profile._replace(email=profile.email or entry.email))
            return self._save(
                Account(user, 0, hashed),
                self._change(user.id, "user.registered", user.id, source, role=user.role),
                lambda connection: onetime.take(connection, token, "invitation", self._clock()),
            )

    def reset_token(self, user_id: str, *, actor: str) -> str:
        """A token with which this user can choose a new password, for a day; an earlier one stops working."""
        user = self.get(user_id)
        token = onetime.new_token()
        entry = self._one_time("reset", RESET_TOKEN_S, role=user.role, user_id=user_id)
        change = self._change(actor, "password.reset_offered", user_id)

        def work(connection: sa.Connection) -> None:
            onetime.withdraw(connection, "reset", user_id=user_id)
            onetime.put(connection, token, entry)
            record(connection, change)

        self._ledger.write(work).result()
        return token

    def reset_password(self, token: str, password: str, *, source: str) -> User:
        """Choose a new password; every session, refresh and access token of the user ends.

        Raises:
            Unauthorized: the token is unknown, used or expired, or its user disabled or not set up.
            TooManyAttempts, BadRequest: as `complete_setup`.
        """
        rules.check_password(password)
        user_id = self._look(token, "reset", source).user_id or ""
        hashed = self._passwords.hash(password)
        with self._changing:
            account = self._accounts[user_id]
            if account.user.disabled_at is not None or not account.user.is_ready:
                raise Unauthorized("This account is disabled or not set up; ask an administrator.")
            return self._save(
                account._replace(password=hashed, generation=account.generation + 1),
                self._change(user_id, "password.reset", user_id, source),
                lambda connection: onetime.take(connection, token, "reset", self._clock()),
                lambda connection: _sign_out(connection, user_id),
            )

    # -- signing in --------------------------------------------------------------------------------------------------------

    def authenticate(self, login: str, password: str, *, source: str) -> User:
        """Whose name (or e-mail address) and password these are; case does not matter in the name.

        Unknown, wrong and disabled take the same work and have the same message.

        Raises:
            Unauthorized: not accepted.
            TooManyAttempts: refused unseen.
        """
        account = self._accounts.get(self._logins.get(rules.login_key(login[: rules.EMAIL_MAX_CHARS + 1]), ""))
        is_right = self._check_password(account, password, source, login)
        if account is None or not is_right or account.user.disabled_at is not None:
            raise Unauthorized("The name or the password is wrong.")
        if account.password is not None and self._passwords.is_outdated(account.password):
            self._replace_password(account, password, self._change(account.user.id, "password.rehashed", account.user.id, source))
        return account.user

    def change_password(self, user_id: str, old: str, new: str, *, source: str) -> User:
        """As `reset_password`, for somebody who knows the old one: other sessions may be a thief's, so all end.

        Raises:
            Unauthorized: the old password is wrong.
            TooManyAttempts, BadRequest: as `complete_setup`.
        """
        rules.check_password(new)
        account = self.account(user_id)
        if not self._check_password(account, old, source, account.user.username):
            raise Unauthorized("The old password is wrong.")
        change = self._change(user_id, "password.changed", user_id, source)
        return self._replace_password(account, new, change, ends_sessions=True)

    def sign_out(self, user_id: str, *, actor: str) -> None:
        """End every session, refresh and access token of the user."""
        with self._changing:
            account = self.account(user_id)
            self._save(
                account._replace(generation=account.generation + 1),
                self._change(actor, "user.signed_out", user_id),
                lambda connection: _sign_out(connection, user_id),
            )

    # -- administration ----------------------------------------------------------------------------------------------------

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
            return self._save(after, change, lambda connection: _sign_out(connection, user_id))

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

    # -- inside ------------------------------------------------------------------------------------------------------------

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

    def _look(self, token: str, kind: Kind, source: str) -> OneTime:
        """Check a token before the work of hashing a password is done for it."""
        self._throttle.check(source, kind)
        try:
            return self._ledger.read(lambda connection: onetime.find(connection, token, kind, self._clock()))
        except Unauthorized:
            self._throttle.failed(source, kind)
            raise

    def _check_password(self, account: Account | None, password: str, source: str, login: str) -> bool:
        """Whether it is right; counted against the source and the name if not."""
        self._throttle.check(source, login)
        is_right = self._passwords.verify(
            account.password if account else None, password, admit=lambda: self._throttle.check(source, login)
        )
        (self._throttle.succeeded if is_right else self._throttle.failed)(source, login)
        return is_right

    def _one_time(self, kind: Kind, life_s: float, *, role: UserRole, email: str = "", user_id: str | None = None) -> OneTime:
        now_s = self._clock()
        return OneTime(
            id=f"tok_{secrets.token_hex(8)}",
            kind=kind,
            user_id=user_id,
            role=role,
            email=email,
            created_at=now_s,
            expires_at=now_s + life_s,
        )

    def _change(self, actor: str, action: str, user_id: str, source: str = "", **detail: object) -> Change:
        return Change(at=self._clock(), actor=actor, action=action, object=user_id, source=source, detail=detail)

    def _replace_password(self, seen: Account, password: str, change: Change, *, ends_sessions: bool = False) -> User:
        """Hash and save, unless the password has been changed since it was checked."""
        hashed = self._passwords.hash(password)
        user_id = seen.user.id
        with self._changing:
            account = self._accounts[user_id]
            if account.password != seen.password:
                raise Unauthorized("The password has been changed meanwhile.")
            if not ends_sessions:
                return self._save(account._replace(password=hashed), change)
            after = account._replace(password=hashed, generation=account.generation + 1)
            return self._save(after, change, lambda connection: _sign_out(connection, user_id))

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


def _sign_out(connection: sa.Connection, user_id: str) -> None:
    connection.execute(sessions.delete().where(sessions.c.user_id == user_id))
    connection.execute(refresh_tokens.delete().where(refresh_tokens.c.user_id == user_id))


def _invitation(entry: OneTime, token: str = "") -> Invitation:
    return Invitation(
        id=entry.id, role=entry.role, email=entry.email, created_at=entry.created_at, expires_at=entry.expires_at, token=token
    )


def _defaults(settings: LimitSettings) -> Limits:
    return Limits(
        requests_per_minute=settings.requests_per_minute or None,
        tokens_per_minute=settings.tokens_per_minute or None,
        concurrency=settings.concurrency or None,
        tokens_per_day=settings.tokens_per_day or None,
        tokens_per_month=settings.tokens_per_month or None,
    )
