from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest

from atlas.directory import DataDirectory
from atlas.errors import Unauthorized
from atlas.settings import AuthSettings
from atlas.store import OpenedSession, Store
from atlas.store.sessions import SESSIONS_PER_USER
from atlas.types import User
from tests.store.conftest import PASSWORD, SOURCE, Clock, OpenStore, add_user, set_up


def open_session(store: Store, user: User) -> OpenedSession:
    return store.sessions.open(user, source=SOURCE, user_agent="Firefox")


# -- browsers --------------------------------------------------------------------------------------------------------------


def test_a_session_is_found_by_its_token_also_after_reopening(reopen: OpenStore) -> None:
    store = reopen()
    owner = set_up(store)
    token, session = (opened := open_session(store, owner)).token, opened.session
    assert store.sessions.find(token) == session
    assert (session.user, session.source, session.user_agent) == (owner, SOURCE, "Firefox")
    assert reopen().sessions.find(token) == session


def test_every_session_is_new(store: Store) -> None:
    owner = set_up(store)
    opened = [open_session(store, owner) for _ in range(3)]
    assert len({made.token for made in opened} | {made.session.csrf for made in opened}) == 6


@pytest.mark.parametrize("token", ["", "nope", "\udc80", "ses_0000000000000000"])
def test_any_other_token_finds_nothing(store: Store, token: str) -> None:
    assert store.sessions.find(token) is None


def test_an_idle_session_ends(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock, auth=AuthSettings(session_idle_s=600.0))
    token = open_session(store, set_up(store)).token
    for _ in range(3):
        clock.advance(599)
        assert store.sessions.find(token)
    clock.advance(600)
    assert store.sessions.find(token) is None
    assert reopen(clock=clock, auth=AuthSettings(session_idle_s=600.0)).sessions.find(token) is None


def test_a_busy_session_ends_too(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock, auth=AuthSettings(session_s=1000.0, session_idle_s=600.0))
    token = open_session(store, set_up(store)).token
    clock.advance(500)
    assert store.sessions.find(token)
    clock.advance(500)
    assert store.sessions.find(token) is None


def test_a_closed_session_is_gone_and_only_that_one(reopen: OpenStore) -> None:
    store = reopen()
    owner = set_up(store)
    first, second = open_session(store, owner), open_session(store, owner)
    store.sessions.close(first.session.id, actor=owner.id)
    store.sessions.close(first.session.id, actor=owner.id)
    assert store.sessions.find(first.token) is None
    assert store.sessions.of(owner.id) == [second.session]
    again = reopen()
    assert again.sessions.find(first.token) is None
    assert again.sessions.find(second.token)


def test_a_user_keeps_a_bounded_number_of_sessions(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock)
    owner = set_up(store)
    tokens = []
    for _ in range(SESSIONS_PER_USER + 2):
        clock.advance(1)
        tokens.append(open_session(store, owner).token)
    assert [token for token in tokens if store.sessions.find(token) is None] == tokens[:2]
    assert len(reopen(clock=clock).sessions.of(owner.id)) == SESSIONS_PER_USER


def test_a_session_shows_the_account_as_it_is_now(store: Store) -> None:
    set_up(store)
    bob = add_user(store)
    token = open_session(store, bob).token
    store.accounts.update(bob.id, actor="test", role="admin")
    found = store.sessions.find(token)
    assert found is not None
    assert found.user.is_admin


def test_what_a_browser_says_of_itself_is_cut_and_cleaned(store: Store) -> None:
    session = store.sessions.open(set_up(store), source="x" * 100, user_agent="a\0b\udc80" + "c" * 500).session
    assert len(session.source) == 64
    assert session.user_agent == "a\ufffdb\ufffd" + "c" * 196


def test_members_and_admins_may_do_what_their_role_says(store: Store) -> None:
    owner = set_up(store)
    bob = add_user(store)
    member = {"chat", "embeddings", "tasks", "interactive", "projects", "read"}
    assert store.sessions.principal(bob).scopes == member
    principal = store.sessions.principal(owner)
    assert principal.scopes == member | {"admin"}
    assert (principal.owner, principal.key_id, principal.username) == (owner.id, "", "ana")


# -- everything at once ----------------------------------------------------------------------------------------------------


def reset(store: Store, user: User) -> None:
    store.accounts.reset_password(store.accounts.reset_token(user.id, actor="cli"), "another long password", source=SOURCE)


@pytest.mark.parametrize(
    "end",
    [
        lambda store, user: store.accounts.update(user.id, actor="test", disabled=True),
        lambda store, user: store.sessions.close_all(user.id),
        lambda store, user: store.accounts.change_password(user.id, PASSWORD, "another long password", source=SOURCE),
        reset,
    ],
    ids=["disable", "close all", "change password", "reset password"],
)
def test_sessions_and_tokens_of_one_user_end_at_once(reopen: OpenStore, end: Callable[[Store, User], object]) -> None:
    store = reopen()
    owner, bob = set_up(store), add_user(store)
    session, tokens = open_session(store, bob), store.sessions.issue(bob, source=SOURCE)
    others = open_session(store, owner)
    store.sessions.verify_access(tokens.access)
    end(store, bob)

    def expect_signed_out(store: Store) -> None:
        assert store.sessions.find(session.token) is None
        assert store.sessions.of(bob.id) == []
        with pytest.raises(Unauthorized):
            store.sessions.verify_access(tokens.access)
        with pytest.raises(Unauthorized):
            store.sessions.refresh(tokens.refresh, source=SOURCE)
        assert store.sessions.find(others.token)

    expect_signed_out(store)
    expect_signed_out(reopen())


def test_who_signs_in_with_the_old_password_beside_a_reset_is_not_let_in(reopen: OpenStore) -> None:
    store = reopen()
    bob = add_user(store)
    proof = store.accounts.sign_in(bob.username, PASSWORD, source=SOURCE)
    reset(store, bob)
    with pytest.raises(Unauthorized, match="changed meanwhile"):
        store.sessions.open(proof.user, source=SOURCE, user_agent="", generation=proof.generation)
    with pytest.raises(Unauthorized, match="changed meanwhile"):
        store.sessions.issue(proof.user, source=SOURCE, generation=proof.generation)
    assert store.sessions.of(bob.id) == reopen().sessions.of(bob.id) == []


def test_a_disabled_user_cannot_sign_in(store: Store) -> None:
    set_up(store)
    bob = add_user(store)
    store.accounts.update(bob.id, actor="test", disabled=True)
    with pytest.raises(Unauthorized):
        open_session(store, bob)
    with pytest.raises(Unauthorized):
        store.sessions.issue(bob, source=SOURCE)


# -- programs --------------------------------------------------------------------------------------------------------------


def test_tokens_are_refreshed_and_an_old_one_ends_its_family(store: Store) -> None:
    owner = set_up(store)
    first = store.sessions.issue(owner, source=SOURCE)
    other = store.sessions.issue(owner, source=SOURCE)
    second = store.sessions.refresh(first.refresh, source=SOURCE)
    assert store.sessions.verify_access(second.access).owner == owner.id
    for stolen in (first, second):
        with pytest.raises(Unauthorized, match="unknown, used or expired"):
            store.sessions.refresh(stolen.refresh, source="203.0.113.1")
    store.sessions.refresh(other.refresh, source=SOURCE)


def test_of_50_uses_of_one_refresh_token_at_most_one_succeeds_and_the_family_ends(store: Store) -> None:
    tokens = store.sessions.issue(set_up(store), source=SOURCE)
    with ThreadPoolExecutor(50) as pool:
        uses = [pool.submit(store.sessions.refresh, tokens.refresh, source=SOURCE) for _ in range(50)]
    won = [use.result() for use in uses if use.exception() is None]
    assert len(won) == 1
    with pytest.raises(Unauthorized):
        store.sessions.refresh(won[0].refresh, source=SOURCE)


def test_a_refresh_token_lives_from_its_last_use(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock, auth=AuthSettings(refresh_token_s=100.0))
    tokens = store.sessions.issue(set_up(store), source=SOURCE)
    for _ in range(3):
        clock.advance(99)
        tokens = store.sessions.refresh(tokens.refresh, source=SOURCE)
    clock.advance(100)
    with pytest.raises(Unauthorized):
        store.sessions.refresh(tokens.refresh, source=SOURCE)


def test_a_revoked_refresh_token_is_refused(store: Store) -> None:
    tokens = store.sessions.issue(set_up(store), source=SOURCE)
    store.sessions.revoke_refresh("unknown")
    store.sessions.revoke_refresh(tokens.refresh)
    with pytest.raises(Unauthorized):
        store.sessions.refresh(tokens.refresh, source=SOURCE)


def test_access_tokens_survive_a_restart_and_expire(reopen: OpenStore) -> None:
    store = reopen(auth=AuthSettings(access_token_s=0.001))
    owner = set_up(store)
    expired = store.sessions.issue(owner, source=SOURCE)
    with pytest.raises(Unauthorized, match="expired"):
        store.sessions.verify_access(expired.access)
    store = reopen()
    good = store.sessions.issue(owner, source=SOURCE)
    assert good.expires_in_s == 900.0
    assert reopen().sessions.verify_access(good.access) == store.sessions.principal(owner)


def test_forged_access_tokens_are_refused(directory: DataDirectory, store: Store) -> None:
    owner = set_up(store)
    token = store.sessions.issue(owner, source=SOURCE).access
    key = directory.read_secret("jwt") or b""
    claims = jwt.decode(token, options={"verify_signature": False})
    assert store.sessions.verify_access(jwt.encode(claims, key, algorithm="HS256")).owner == owner.id
    forged = [
        "",
        "not.a.token",
        "é.\udc80.x",
        token[:-2],
        jwt.encode(claims, key[::-1], algorithm="HS256"),
        jwt.encode(claims, "", algorithm="none"),
        jwt.encode(claims, key * 2, algorithm="HS512"),
        *(
            jwt.encode({name: value for name, value in claims.items() if name != missing}, key, algorithm="HS256")
            for missing in claims
        ),
        *(
            jwt.encode(claims | wrong, key, algorithm="HS256")
            for wrong in (
                {"aud": "other"},
                {"aud": ["atlas", "other"]},
                {"iss": "other"},
                {"typ": "refresh"},
                {"exp": 1},
                {"sub": "usr_nobody"},
                {"gen": claims["gen"] + 1},
            )
        ),
    ]
    for text in forged:
        with pytest.raises(Unauthorized):
            store.sessions.verify_access(text)
