"""How people get an account and prove that it is theirs: set-up, invitations, passwords.

Not covered: proof that an e-mail address is its owner's, and second factors.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from atlas.errors import Conflict, NotFound, Unauthorized
from atlas.settings import AuthSettings, LimitSettings
from atlas.store import onetime, rules
from atlas.store.audit import Change, record
from atlas.store.ledger import Ledger
from atlas.store.onetime import Kind, OneTime
from atlas.store.passwords import Passwords
from atlas.store.people import Account, People, end_sign_ins
from atlas.store.throttle import Throttle
from atlas.types import User, UserRole

SETUP_TOKEN_S = 1800.0  # long enough to find the browser; chosen
RESET_TOKEN_S = 86400.0  # an administrator hands it over by whatever way they have; chosen


class SignIn(NamedTuple):
    """Whose password was right, and when: a new password, or signing out, makes another generation."""

    user: User
    generation: int


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


class Accounts(People):
    """People, and how they come in. Safe from any thread; whatever takes a password blocks for about 25 ms."""

    def __init__(
        self, ledger: Ledger, *, auth: AuthSettings, limits: LimitSettings, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(ledger, limits=limits, clock=clock)
        self._auth = auth
        self._passwords = Passwords()
        self._throttle = Throttle()

    # -- set-up ------------------------------------------------------------------------------------------------------------

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
                lambda connection: end_sign_ins(connection, user_id),
            )

    # -- signing in --------------------------------------------------------------------------------------------------------

    def authenticate(self, login: str, password: str, *, source: str) -> User:
        """Whose name (or e-mail address) and password these are. As `sign_in`."""
        return self.sign_in(login, password, source=source).user

    def sign_in(self, login: str, password: str, *, source: str) -> SignIn:
        """Somebody with this name (or e-mail address) and password; case does not matter in the name.

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
        return SignIn(account.user, account.generation)

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

    # -- inside ------------------------------------------------------------------------------------------------------------

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
            return self._save(after, change, lambda connection: end_sign_ins(connection, user_id))


def _invitation(entry: OneTime, token: str = "") -> Invitation:
    return Invitation(
        id=entry.id, role=entry.role, email=entry.email, created_at=entry.created_at, expires_at=entry.expires_at, token=token
    )
