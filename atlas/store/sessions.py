"""Signed-in people: browser sessions behind an opaque cookie, and the tokens of programs (`access`).

A session is always a new one, so a cookie planted before signing in is worth nothing afterwards. All are in memory; the ledger
has them for the next start.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

import msgspec
import sqlalchemy as sa

from atlas.errors import Unauthorized
from atlas.settings import AuthSettings
from atlas.store import rules
from atlas.store.access import AccessTokens, Tokens
from atlas.store.accounts import Accounts
from atlas.store.audit import Change, record
from atlas.store.ledger import Ledger
from atlas.store.onetime import new_token, token_digest
from atlas.store.people import check_generation
from atlas.store.tables import sessions as table
from atlas.types import Principal, User

LAST_SEEN_RESOLUTION_S = 60.0
SESSIONS_PER_USER = 32  # the oldest goes when there are more; bounds what one account can make us keep


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody signed in with a browser; times are Unix seconds.

    Attributes:
        user: as the account is now.
        csrf: what a form or script must send back with anything that changes something.
        expires_at: the absolute end; idleness ends it earlier.
        last_seen_at: to the minute.
    """

    id: str
    user: User
    csrf: str
    created_at: float
    expires_at: float
    last_seen_at: float
    source: str
    user_agent: str


class OpenedSession(msgspec.Struct, frozen=True, kw_only=True):
    """A new session: the only moment its cookie's value exists outside the browser."""

    token: str
    session: Session


class _Open:
    """A session in memory. `seen_s` is written by any thread: the latest wins, and any is good enough."""

    __slots__ = ("generation", "seen_s", "session")

    def __init__(self, session: Session, generation: int) -> None:
        self.session = session
        self.generation = generation
        self.seen_s = session.last_seen_at


class Sessions:
    """The sessions of one ledger. Safe from any thread."""

    def __init__(
        self,
        ledger: Ledger,
        accounts: Accounts,
        access: AccessTokens,
        *,
        auth: AuthSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._accounts = accounts
        self._access = access
        self._auth = auth
        self._clock = clock
        self._changing = threading.Lock()
        self._open = ledger.read(self._load)

    def open(self, user: User, *, source: str, user_agent: str, generation: int | None = None) -> OpenedSession:
        """Sign in. The token goes into the cookie.

        Raises:
            Unauthorized: the user is disabled; or was signed out since `generation`, in which their password was right.
        """
        account = self._accounts.account(user.id)
        if account.user.disabled_at is not None:
            raise Unauthorized("This account is disabled; ask an administrator.")
        token, now_s = new_token(), self._clock()
        session = Session(
            id=f"ses_{secrets.token_hex(8)}",
            user=account.user,
            csrf=new_token(),
            created_at=now_s,
            expires_at=now_s + self._auth.session_s,
            last_seen_at=now_s,
            source=rules.clipped(source, 64),
            user_agent=rules.clipped(user_agent, 200),
        )
        change = Change(at=now_s, actor=user.id, action="session.opened", object=session.id, source=source)
        with self._changing:
            surplus = self.of(user.id)[SESSIONS_PER_USER - 1 :]
            self._ledger.write(
                lambda connection: _insert(connection, token_digest(token), session, surplus, change, generation)
            ).result()
            self._forget({old.id for old in surplus})
            self._open[token_digest(token)] = _Open(session, account.generation if generation is None else generation)
        return OpenedSession(token=token, session=session)

    def find(self, token: str) -> Session | None:
        """The session of this cookie; None if there is none, or it has ended. Counts as a sign of life."""
        found = self._open.get(token_digest(token))
        if found is None or not self._lives(found):
            return None
        now_s = self._clock()
        if now_s - found.session.last_seen_at > LAST_SEEN_RESOLUTION_S:
            self._touch(found, now_s)
        found.seen_s = now_s
        user = self._accounts.get(found.session.user.id)
        if found.session.user is not user:
            found.session = msgspec.structs.replace(found.session, user=user)
        return found.session

    def close(self, session_id: str, *, actor: str) -> None:
        """Sign out of one session; one that is gone is no error."""
        change = Change(at=self._clock(), actor=actor, action="session.closed", object=session_id)

        def work(connection: sa.Connection) -> None:
            if connection.execute(table.delete().where(table.c.id == session_id)).rowcount:
                record(connection, change)

        with self._changing:
            self._ledger.write(work).result()
            self._forget({session_id})

    def of(self, user_id: str) -> list[Session]:
        """The user's sessions, the newest first."""
        mine = [found.session for found in list(self._open.values()) if found.session.user.id == user_id and self._lives(found)]
        return sorted(mine, key=lambda session: session.created_at, reverse=True)

    def close_all(self, user_id: str, *, actor: str = "") -> None:
        """Sign the user out everywhere: sessions, refresh tokens, access tokens."""
        self._accounts.sign_out(user_id, actor=actor or user_id)

    def principal(self, user: User) -> Principal:
        """What a signed-in person may do."""
        return Principal(
            owner=user.id,
            username=user.username,
            role=user.role,
            scopes=rules.ADMIN_SCOPES if user.is_admin else rules.MEMBER_SCOPES,
            user_limits=self._accounts.effective_limits(user),
        )

    def issue(self, user: User, *, source: str, generation: int | None = None) -> Tokens:
        """Tokens for a program; see `AccessTokens`."""
        return self._access.issue(user, source=source, generation=generation)

    def refresh(self, refresh_token: str, *, source: str) -> Tokens:
        """Tokens for one that is used up; see `AccessTokens`."""
        return self._access.refresh(refresh_token, source=source)

    def revoke_refresh(self, refresh_token: str) -> None:
        """End a refresh token and its family."""
        self._access.revoke(refresh_token)

    def verify_access(self, token: str) -> Principal:
        """Who holds this access token.

        Raises:
            Unauthorized: it is not valid, or not any more.
        """
        return self.principal(self._access.verify(token))

    def _lives(self, found: _Open) -> bool:
        account = self._accounts.account(found.session.user.id)
        now_s = self._clock()
        return (
            now_s < found.session.expires_at
            and now_s < found.seen_s + self._auth.session_idle_s
            and found.generation == account.generation
            and account.user.disabled_at is None
        )

    def _touch(self, found: _Open, now_s: float) -> None:
        """Note the sign of life; the write is not waited for."""
        found.session = msgspec.structs.replace(found.session, last_seen_at=now_s)
        query = table.update().where(table.c.id == found.session.id).values(last_seen_at=now_s)
        self._ledger.write(lambda connection: connection.execute(query))

    def _forget(self, session_ids: set[str]) -> None:
        """Drop these, and whatever else has ended. Hold `_changing`."""
        for digest, found in list(self._open.items()):
            if found.session.id in session_ids or not self._lives(found):
                self._open.pop(digest, None)

    def _load(self, connection: sa.Connection) -> dict[bytes, _Open]:
        rows = connection.execute(sa.select(table).where(table.c.expires_at > self._clock())).mappings()
        return {bytes(row["digest"]): self._loaded(row) for row in rows}

    def _loaded(self, row: sa.RowMapping) -> _Open:
        account = self._accounts.account(row["user_id"])
        fields = {name: row[name] for name in Session.__struct_fields__ if name != "user"}
        return _Open(Session(user=account.user, **fields), account.generation)


def _insert(
    connection: sa.Connection, digest: bytes, session: Session, surplus: list[Session], change: Change, generation: int | None
) -> None:
    check_generation(connection, session.user.id, generation)
    gone = [old.id for old in surplus]
    connection.execute(table.delete().where(sa.or_(table.c.expires_at <= session.created_at, table.c.id.in_(gone))))
    fields = {name: getattr(session, name) for name in Session.__struct_fields__ if name != "user"}
    connection.execute(table.insert().values(digest=digest, user_id=session.user.id, **fields))
    record(connection, change)
