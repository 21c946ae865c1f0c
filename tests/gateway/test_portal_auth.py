"""/api/auth over HTTP, on a real ledger: accounts, tokens, sessions, passwords."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import structlog
from structlog.testing import capture_logs

from atlas.engine import ScriptedEngine
from atlas.settings import AuthSettings
from atlas.store import Store
from tests.gateway.conftest import Running, deps_of, new_store, serving
from tests.gateway.people import PASSWORD, People, bearer, browser, settle, signed_in, token_of

NEW = "another long password"


@pytest.fixture
def people(store: Store) -> People:
    return settle(store)


@pytest.fixture
def server(store: Store) -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(["hi"]), store=store)) as running:
        yield running


def login(server: Running, username: str = "mara", password: str = PASSWORD) -> httpx.Response:
    return httpx.post(f"{server.url}/api/auth/login", json={"username": username, "password": password})


def code(reply: httpx.Response) -> Any:
    return reply.json()["error"]["code"]


# -- making an account --


def test_the_first_registration_needs_the_set_up_token_and_makes_the_owner(server: Running, store: Store) -> None:
    body = {"token": "guessed", "username": "eve", "password": PASSWORD, "email": "eve@example.org"}
    assert httpx.post(f"{server.url}/api/auth/register", json=body).status_code == 401
    reply = httpx.post(f"{server.url}/api/auth/register", json=body | {"token": store.accounts.setup_token()})
    assert reply.status_code == 200
    assert reply.json()["user"] | {"id": "", "created_at": ""} == {
        "id": "",
        "username": "eve",
        "email": "eve@example.org",
        "role": "owner",
        "is_active": True,
        "is_admin": True,
        "created_at": "",
        "limits": {},
    }
    assert reply.json()["token_type"] == "bearer"


def test_of_many_that_race_for_set_up_one_becomes_owner(server: Running, store: Store) -> None:
    token = store.accounts.setup_token()

    def race(number: int) -> int:
        body = {"token": token, "username": f"racer{number}", "password": PASSWORD}
        return httpx.post(f"{server.url}/api/auth/register", json=body, timeout=60).status_code

    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(race, range(12)))
    assert statuses.count(200) == 1
    assert set(statuses) <= {200, 401, 409}
    assert [user.role for user in store.accounts.users()] == ["owner"]


@pytest.mark.usefixtures("people")
def test_nobody_registers_without_an_invitation(server: Running, store: Store) -> None:
    before = store.accounts.users()
    for token in ("", "x", "A" * 43):
        body = {"token": token, "username": "eve", "password": PASSWORD}
        assert httpx.post(f"{server.url}/api/auth/register", json=body).status_code == 401
    assert httpx.post(f"{server.url}/api/auth/register", json={"username": "eve", "password": PASSWORD}).status_code == 400
    assert store.accounts.users() == before


def test_an_invitation_is_good_once_and_for_its_role(server: Running, store: Store, people: People) -> None:
    invitation = store.accounts.invite(actor=people.owner.id, email="new@example.org")
    body = {"token": invitation.token, "username": "newt", "password": PASSWORD}
    first = httpx.post(f"{server.url}/api/auth/register", json=body)
    assert (first.json()["user"]["role"], first.json()["user"]["email"]) == ("member", "new@example.org")
    assert httpx.post(f"{server.url}/api/auth/register", json=body | {"username": "newt2"}).status_code == 401


@pytest.mark.parametrize("extra", [{"is_admin": True}, {"role": "owner"}, {"limits": {}}, {"id": "usr_0"}])
def test_nobody_makes_themselves_more_by_sending_a_field_more(
    server: Running, store: Store, people: People, extra: dict[str, Any]
) -> None:
    token = store.accounts.invite(actor=people.owner.id).token
    body = {"token": token, "username": "newt", "password": PASSWORD} | extra
    reply = httpx.post(f"{server.url}/api/auth/register", json=body)
    assert reply.status_code == 400
    assert "newt" not in {user.username for user in store.accounts.users()}


# -- signing in --


def test_login_gives_tokens_for_name_or_address(server: Running, people: People) -> None:
    for name in ("mara", "MARA", "mara@example.org"):
        reply = login(server, name)
        assert reply.status_code == 200
        body = reply.json()
        assert (body["token_type"], body["expires_in"], body["user"]["id"]) == ("bearer", 900, people.member.id)
        me = httpx.get(f"{server.url}/api/auth/me", headers=bearer(body["access_token"]))
        assert me.json() == body["user"]


@pytest.mark.usefixtures("people")
def test_unknown_wrong_and_disabled_look_the_same(server: Running, store: Store, people: People) -> None:
    store.accounts.update(people.other.id, actor=people.owner.id, disabled=True)
    replies = [login(server, "mara", "wrong password"), login(server, "nobody", PASSWORD), login(server, "otto", PASSWORD)]
    assert {reply.status_code for reply in replies} == {401}
    assert len({reply.text for reply in replies}) == 1


@pytest.mark.usefixtures("people")
def test_guessing_is_throttled_before_the_password_is_looked_at(server: Running) -> None:
    statuses = [login(server, "mara", f"wrong password {i}").status_code for i in range(11)]
    assert statuses == [401] * 10 + [429]
    right = login(server)
    assert right.status_code == 429
    assert 0 < int(right.headers["retry-after"]) <= 300
    assert login(server, "otto").status_code == 200


@pytest.mark.parametrize("path", ["/api/auth/login", "/api/auth/register", "/api/auth/reset", "/api/auth/refresh"])
def test_a_wrong_body_is_not_sent_back(server: Running, path: str) -> None:
    canary = "hunter2-hunter2-hunter2"
    bodies: list[Any] = [
        {"password": canary, "extra": 1},
        {"password": {"nested": canary}, "token": canary},
        {"username": [canary], "refresh_token": [canary]},
        {"token": canary * 100, "password": canary * 100, "refresh_token": canary * 100},
        [canary],
        canary,
    ]
    for body in bodies:
        reply = httpx.post(server.url + path, json=body)
        assert reply.status_code == 400
        assert canary not in reply.text


@pytest.mark.usefixtures("people")
def test_no_password_or_token_is_in_any_log_line(server: Running) -> None:
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        body = login(server).json()
        login(server, "mara", "a wrong password")
        httpx.post(f"{server.url}/api/auth/refresh", json={"refresh_token": body["refresh_token"]})
        httpx.get(f"{server.url}/api/auth/me", headers=bearer(body["access_token"]))
    assert lines
    for secret in (PASSWORD, "a wrong password", body["access_token"], body["refresh_token"]):
        assert secret not in str(lines)


def test_login_does_not_stop_the_event_loop(server: Running, people: People) -> None:
    """Hashing happens in threads, two at a time: while ten people sign in, health answers between them."""
    with ThreadPoolExecutor(10) as pool:
        logins = [pool.submit(login, server, name) for name in ("mara", "otto", "anna", "olga", "mara")]
        answered = 0
        while not all(future.done() for future in logins):
            assert httpx.get(f"{server.url}/livez").status_code == 200
            answered += 1
        assert {future.result().status_code for future in logins} == {200}
    assert answered > 1


# -- tokens --


@pytest.mark.usefixtures("people")
def test_a_refresh_token_is_good_once_and_reuse_ends_the_family(server: Running) -> None:
    first = login(server).json()["refresh_token"]
    second = httpx.post(f"{server.url}/api/auth/refresh", json={"refresh_token": first})
    assert second.status_code == 200
    assert httpx.post(f"{server.url}/api/auth/refresh", json={"refresh_token": first}).status_code == 401
    stolen = second.json()["refresh_token"]
    assert httpx.post(f"{server.url}/api/auth/refresh", json={"refresh_token": stolen}).status_code == 401


@pytest.mark.usefixtures("people")
def test_logout_ends_the_refresh_token(server: Running) -> None:
    body = login(server).json()
    sent = {"refresh_token": body["refresh_token"]}
    assert httpx.post(f"{server.url}/api/auth/logout", json=sent, headers=bearer(body["access_token"])).status_code == 200
    assert httpx.post(f"{server.url}/api/auth/refresh", json=sent).status_code == 401


def test_a_token_signed_with_the_key_of_v2_opens_nothing(server: Running, store: Store, people: People) -> None:
    claims = jwt.decode(token_of(store, people.owner), options={"verify_signature": False})
    for key in ("change-me-in-production-use-a-long-random-string", "secret" * 8):
        forged = jwt.encode(claims, key, algorithm="HS256")
        assert httpx.get(f"{server.url}/api/auth/me", headers=bearer(forged)).status_code == 401
    unsigned = jwt.encode(claims, "", algorithm="none")
    assert httpx.get(f"{server.url}/api/auth/me", headers=bearer(unsigned)).status_code == 401


def test_a_disabled_user_is_out_at_once(server: Running, store: Store, people: People) -> None:
    key = store.keys.mint("k", owner=people.member.id).key
    opened = store.sessions.open(people.member, source="", user_agent="")
    client, page = signed_in(server.url, store, people.member), browser(server.url, opened)
    with client, page:
        assert (client.get("/api/auth/me").status_code, page.get("/api/auth/me").status_code) == (200, 200)
        store.accounts.update(people.member.id, actor=people.owner.id, disabled=True)
        assert (client.get("/api/auth/me").status_code, page.get("/api/auth/me").status_code) == (401, 401)
    assert httpx.get(f"{server.url}/v1/models", headers=bearer(key)).status_code == 401


# -- sessions --


def test_sessions_are_listed_and_closed_by_their_owner_only(server: Running, store: Store, people: People) -> None:
    mine = store.sessions.open(people.member, source="10.0.0.1", user_agent="Firefox")
    theirs = store.sessions.open(people.other, source="", user_agent="")
    with browser(server.url, mine) as page:
        listed = page.get("/api/auth/sessions").json()
        assert (listed["total"], listed["sessions"][0]["user_agent"], listed["sessions"][0]["is_current"]) == (1, "Firefox", True)
        assert page.delete(f"/api/auth/sessions/{theirs.session.id}").status_code == 404
        assert page.delete(f"/api/auth/sessions/{mine.session.id}").status_code == 200
        assert page.get("/api/auth/me").status_code == 401
    with browser(server.url, theirs) as page:
        assert page.get("/api/auth/me").status_code == 200


def test_logout_with_a_cookie_ends_the_session_and_clears_the_cookie(server: Running, store: Store, people: People) -> None:
    with browser(server.url, store.sessions.open(people.member, source="", user_agent="")) as page:
        reply = page.post("/api/auth/logout", json={})
        assert reply.headers["set-cookie"] == "atlas=; Max-Age=0; Path=/; HttpOnly; SameSite=Strict"
        assert page.get("/api/auth/me").status_code == 401


# -- passwords --


def test_changing_a_password_needs_the_old_one_and_ends_everything_else(server: Running, store: Store, people: People) -> None:
    before = login(server).json()
    with signed_in(server.url, store, people.member) as client:
        wrong = client.post("/api/auth/password", json={"old_password": "not the old one", "new_password": NEW})
        assert wrong.status_code == 401
        short = client.post("/api/auth/password", json={"old_password": PASSWORD, "new_password": "short"})
        assert (short.status_code, short.json()["error"]["param"]) == (400, "password")
        right = client.post("/api/auth/password", json={"old_password": PASSWORD, "new_password": NEW})
        assert right.status_code == 200
        assert client.get("/api/auth/me").status_code == 401
    assert httpx.post(f"{server.url}/api/auth/refresh", json={"refresh_token": before["refresh_token"]}).status_code == 401
    assert (login(server).status_code, login(server, "mara", NEW).status_code) == (401, 200)


def test_a_reset_link_is_good_once(server: Running, store: Store, people: People) -> None:
    with signed_in(server.url, store, people.admin) as admin:
        token = admin.post(f"/api/users/{people.member.id}/reset").json()["token"]
    body = {"token": token, "password": NEW}
    assert httpx.post(f"{server.url}/api/auth/reset", json=body).status_code == 200
    assert httpx.post(f"{server.url}/api/auth/reset", json=body | {"password": "a third password"}).status_code == 401
    assert login(server, "mara", NEW).status_code == 200


def test_an_access_token_ends_with_its_time(tmp_path: Path) -> None:
    late_s = [0.0]
    store = new_store(tmp_path / "data", auth=AuthSettings(access_token_s=60.0), clock=lambda: time.time() - late_s[0])
    try:
        people = settle(store)
        with serving(deps_of(None, store=store)) as server:
            fresh = bearer(token_of(store, people.member))
            late_s[0] = 61.0
            stale = bearer(token_of(store, people.member))
            assert httpx.get(f"{server.url}/api/auth/me", headers=fresh).status_code == 200
            assert httpx.get(f"{server.url}/api/auth/me", headers=stale).status_code == 401
    finally:
        store.close()


def test_without_accounts_these_routes_say_so(store: Store) -> None:
    with serving(deps_of(None, store=store, auth=AuthSettings(mode="off"))) as server:
        reply = httpx.get(f"{server.url}/api/auth/me")
        assert (reply.status_code, code(reply)) == (409, "conflict")
        assert "auth.mode" in reply.json()["error"]["message"]
