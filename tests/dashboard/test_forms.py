"""What the forms do, and what they refuse."""

from __future__ import annotations

import re
import time
from html import unescape
from pathlib import Path

import httpx
import pytest
from litestar.handlers import HTTPRouteHandler
from openai import AuthenticationError

from atlas.dashboard.routes import HANDLERS
from atlas.settings import AuthSettings, Settings
from atlas.store import open_live
from atlas.types import Limits
from tests.dashboard.site import PASSWORD, Person, Site, open_site

EVIL = "<script>alert(1)</script>"
SHOWN_KEY = re.compile(r'<pre id="new-key"[^>]*><code>(sk-llm-\w+)</code>')
SHOWN_LINK = re.compile(r'<pre id="link"[^>]*><code>([^<]+)</code>')


def posts() -> list[tuple[str, str]]:
    """(path, access) of every form the dashboard takes."""
    found = []
    for handler in HANDLERS:
        assert isinstance(handler, HTTPRouteHandler)
        if "POST" in handler.http_methods:
            found += [(re.sub(r"{\w+:\w+}", "x1", path), handler.opt["access"]) for path in handler.paths]
    return found


def new_account(site: Site, token: str, username: str, path: str = "/register", **changes: str) -> httpx.Response:
    form = {"token": token, "username": username, "email": "", "password": PASSWORD, "again": PASSWORD, **changes}
    return site.anybody().http.post(path, data=form)


def test_every_form_of_a_session_needs_its_token(empty: Site) -> None:
    owner, other = empty.owner(), empty.owner()
    paths = [path for path, access in posts() if access != "public"]
    assert len(paths) > 12
    for path in paths:
        for token in ({}, {"csrf": "wrong"}, {"csrf": other.csrf()}):
            assert owner.http.post(path, data=token).status_code == 403, path


def test_every_form_must_come_from_our_own_pages(empty: Site) -> None:
    owner = empty.owner()
    token = owner.csrf()
    for path, _ in posts():
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}):
            reply = owner.http.post(path, data={"csrf": token}, headers=headers)
            assert reply.status_code == 403, (path, headers)


def test_forms_are_forms(empty: Site) -> None:
    somebody = empty.anybody()
    assert somebody.http.post("/signin", json={"login": "ada"}).status_code == 400
    assert somebody.http.post("/signin", files={"login": b"ada"}).status_code in (400, 415)
    assert somebody.http.post("/signin", data={"login": "x" * 70_000}).status_code == 413


def test_setup_makes_the_owner_once(site: Site) -> None:
    token = site.store.accounts.setup_token()
    assert token
    assert new_account(site, "wrong", "eve", "/setup").status_code == 401
    reply = new_account(site, token, "ada", "/setup")
    assert reply.status_code == 200
    assert reply.url.path == "/"
    again = new_account(site, token, "eve", "/setup")
    assert again.status_code in (401, 409)
    assert [user.username for user in site.store.accounts.users()] == ["ada"]


def test_what_was_wrong_in_a_form_is_said_and_what_was_right_is_kept(site: Site) -> None:
    token = site.store.accounts.setup_token() or ""
    reply = new_account(site, token, "ada", "/setup", email="ada@example.org", again="another password")
    assert reply.status_code == 400
    assert "the two passwords differ" in reply.text
    assert 'value="ada"' in reply.text
    assert PASSWORD not in reply.text
    assert 'aria-invalid="true"' in reply.text


def test_signing_in_leads_to_local_pages_only(empty: Site) -> None:
    for target, expected in (
        ("/keys", "/keys"),
        ("//evil.example/", "/"),
        ("https://evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("/%0d%0aset-cookie:x", "/%0d%0aset-cookie:x"),
        ("/x\r\nset-cookie:y", "/"),
        ("", "/"),
    ):
        form = {"login": "ada", "password": PASSWORD, "next": target}
        reply = empty.anybody().http.post("/signin", data=form, follow_redirects=False)
        assert (reply.status_code, reply.headers["location"]) == (303, expected), target


def test_the_session_cookie_is_new_strict_and_out_of_reach_of_scripts(empty: Site) -> None:
    person = empty.anybody()
    person.http.cookies.set("atlas", "attackerchosen0000")
    reply = person.http.post("/signin", data={"login": "ada", "password": PASSWORD}, follow_redirects=False)
    cookie = reply.headers["set-cookie"]
    assert cookie.startswith("atlas=")
    assert "attackerchosen0000" not in cookie
    for flag in ("HttpOnly", "SameSite=strict", "Path=/"):
        assert flag.lower() in cookie.lower()


def test_wrong_passwords_and_unknown_people_get_the_same_answer(empty: Site) -> None:
    replies = [empty.anybody().sign_in(login, "wrong password !") for login in ("ada", "nobody")]
    assert [reply.status_code for reply in replies] == [401, 401]
    texts = {re.search(r'role="alert">([^<]+)<', reply.text)[1] for reply in replies}  # type: ignore[index]  # an alert is there
    assert len(texts) == 1


def test_too_many_wrong_passwords_are_told_when_to_come_back(site: Site) -> None:
    site.owner()
    person = site.anybody()
    replies = [person.sign_in("ada", f"wrong password {number}") for number in range(11)]
    assert replies[-1].status_code == 429
    assert int(replies[-1].headers["retry-after"]) > 0


def test_signing_out_ends_the_session(site: Site) -> None:
    owner = site.owner()
    cookie = owner.http.cookies["atlas"]
    assert "You are signed out." in owner.send("/signout").text
    late = site.anybody()
    late.http.cookies.set("atlas", cookie)
    assert late.http.get("/", follow_redirects=False).status_code == 303


def test_an_invitation_brings_somebody_in_once(site: Site) -> None:
    owner = site.owner()
    link = shown(owner.send("/users/invite", email="grace@example.org", role="member"), SHOWN_LINK)
    assert link.startswith(site.url + "/register?token=")
    assert "grace@example.org" in owner.get("/users").text
    token = link.partition("token=")[2]
    assert new_account(site, token, "grace").url.path == "/"
    assert new_account(site, token, "eve").status_code == 401
    assert token not in owner.get("/audit").text


def test_a_withdrawn_invitation_is_worth_nothing(site: Site) -> None:
    owner = site.owner()
    token = shown(owner.send("/users/invite", role="member"), SHOWN_LINK).partition("token=")[2]
    [invitation] = site.store.accounts.invitations()
    owner.send(f"/users/invitations/{invitation.id}/withdraw")
    assert new_account(site, token, "grace").status_code == 401


def test_a_reset_link_sets_a_new_password_and_ends_sessions(site: Site) -> None:
    owner, grace = site.owner(), site.person("grace")
    user = next(user for user in site.store.accounts.users() if user.username == "grace")
    token = shown(owner.send(f"/users/{user.id}/reset"), SHOWN_LINK).partition("token=")[2]
    form = {"token": token, "password": "a new long password", "again": "a new long password"}
    reply = site.anybody().http.post("/reset", data=form)
    assert "Password set." in reply.text
    assert grace.http.get("/", follow_redirects=False).status_code == 303
    assert grace.sign_in("grace").status_code == 401
    assert grace.sign_in("grace", "a new long password").status_code == 200
    assert site.anybody().http.post("/reset", data=form).status_code == 401


def test_disabling_a_user_ends_sessions_and_keys_at_once(site: Site) -> None:
    owner, grace = site.owner(), site.person("grace")
    user = next(user for user in site.store.accounts.users() if user.username == "grace")
    key = site.key(user).key
    assert site.ask(key)
    owner.send(f"/users/{user.id}/disable")
    assert grace.http.get("/", follow_redirects=False).status_code == 303
    with pytest.raises(AuthenticationError):
        site.ask(key)
    owner.send(f"/users/{user.id}/enable")
    assert site.ask(key)


def test_an_admin_is_not_an_owner(site: Site) -> None:
    """Otherwise an admin could reset the owner's password, or rotate the owner's key and read it."""
    site.owner()
    admin = site.person("grace", "admin")
    owner_id = site.store.accounts.owner().id
    key = site.key(name="the owner's").info
    member = site.user("linus")
    for path, fields in (
        (f"/users/{owner_id}/reset", {}),
        (f"/users/{owner_id}/disable", {}),
        (f"/users/{owner_id}", {"role": "member"}),
        (f"/keys/{key.id}/rotate", {"grace": "0"}),
        (f"/users/{member.id}", {"role": "admin"}),
        (f"/users/{member.id}", {"role": "owner"}),
        ("/users/invite", {"role": "admin"}),
        ("/users/invite", {"role": "owner"}),
    ):
        reply = admin.send(path, **fields)
        assert reply.status_code == 403, (path, fields)
    assert site.store.accounts.get(member.id).role == "member"
    assert admin.send(f"/users/{member.id}", role="member", tokens_per_day="1,000").status_code == 200
    assert site.store.accounts.get(member.id).limits.tokens_per_day == 1000


def test_the_last_owner_stays(site: Site) -> None:
    owner = site.owner()
    me = site.store.accounts.owner().id
    assert owner.send(f"/users/{me}/disable").status_code == 409
    assert owner.send(f"/users/{me}", role="member").status_code == 409


def test_a_keys_life(site: Site) -> None:
    """Created, shown once, used, paused, resumed, rotated with grace, revoked."""
    owner = site.owner()
    key = shown(owner.send("/keys", name="laptop", scopes=["chat", "read"], expires="30d"), SHOWN_KEY)
    [info] = site.store.keys.list()
    assert (info.name, info.scopes) == ("laptop", ("chat", "read"))
    assert info.expires_at
    assert 29 < (info.expires_at - time.time()) / 86400 < 31
    assert key not in owner.get("/keys").text + owner.get(f"/keys/{info.id}").text
    assert site.ask(key)
    owner.send(f"/keys/{info.id}/pause")
    assert refused(site, key)
    owner.send(f"/keys/{info.id}/resume")
    assert site.ask(key)
    new = shown(owner.send(f"/keys/{info.id}/rotate", grace="1h"), SHOWN_KEY)
    assert site.ask(key)
    assert site.ask(new)
    owner.send(f"/keys/{info.id}/revoke")
    assert refused(site, key)
    assert site.ask(new)


def test_a_key_without_name_or_scope_or_beyond_its_user_is_refused(site: Site) -> None:
    site.owner()
    member = site.person("linus")
    for fields, words in (
        ({"name": "", "scopes": "chat"}, "give the key a name"),
        ({"name": "x"}, "choose at least one scope"),
        ({"name": "x", "scopes": "admin"}, "not yours to give"),
        ({"name": "x", "scopes": "chat", "expires": "never again"}, "expires must be one of"),
        ({"name": "x", "scopes": "chat", "tokens_per_day": "-1"}, "whole number above 0"),
        ({"name": "x", "scopes": "chat", "cost_per_day": "nan"}, "an amount above 0"),
    ):
        reply = member.send("/keys", **fields)
        assert reply.status_code == 400, fields
        assert words in unescape(reply.text)
    assert site.store.keys.list() == []


def test_names_are_text_and_never_markup(site: Site) -> None:
    owner = site.owner()
    evil = site.anybody(**{"user-agent": EVIL})
    evil.sign_in("ada")
    owner.send("/keys", name=EVIL, scopes="chat", models=EVIL)
    owner.send("/users/invite", email=f'"{EVIL}"@example.org', role="member")
    key = site.store.keys.list()[0]
    for path in (
        "/keys",
        f"/keys/{key.id}",
        "/users",
        "/profile",
        "/audit",
        "/usage",
        "/activity",
        f"/activity?model={EVIL}",
        "/",
    ):
        html = owner.get(path).text
        assert EVIL not in html, path
    assert "&lt;script&gt;" in owner.get("/keys").text
    assert "&lt;script&gt;" in owner.get("/profile").text
    assert EVIL not in owner.get(f"/signin?next={EVIL}").text
    assert EVIL not in site.anybody().get(f"/register?token={EVIL}").text
    assert "<script>" not in owner.get("/keys/<script>").text.replace("<script src=", "")
    assert EVIL not in owner.get(f"/activity?done={EVIL}").text


def test_changing_the_password_signs_out_everyone_else(site: Site) -> None:
    here, there = site.owner(), site.owner()
    wrong = here.send("/profile/password", old="not this one at all", password="a new long password", again="a new long password")
    assert wrong.status_code == 401
    done = here.send("/profile/password", old=PASSWORD, password="a new long password", again="a new long password")
    assert "Password changed." in done.text
    assert here.get("/profile").url.path == "/profile"
    assert there.http.get("/profile", follow_redirects=False).status_code == 303


def test_sessions_are_listed_and_ended(site: Site) -> None:
    here, there, third = site.owner(), site.owner(), site.owner()
    owner_id = site.store.accounts.owner().id
    assert here.get("/profile").text.count("python-httpx") >= 3
    mine = site.store.sessions.of(owner_id)[0]  # third, the newest
    here.send(f"/profile/sessions/{mine.id}")
    assert third.http.get("/", follow_redirects=False).status_code == 303
    here.send("/profile/sessions/others")
    assert there.http.get("/", follow_redirects=False).status_code == 303
    assert here.http.get("/", follow_redirects=False).status_code == 200
    assert here.send("/profile/sessions/ses_of_another").status_code == 404


def test_the_playground_gets_one_short_key_that_can_only_chat(site: Site) -> None:
    owner = site.owner()
    first, second = (playground_key(owner) for _ in range(2))
    assert refused(site, first)
    assert site.ask(second)
    info = next(key for key in site.store.keys.list() if key.is_valid(time.time()))
    assert info.scopes == ("chat",)
    assert info.expires_at
    assert info.expires_at - time.time() <= 900
    owner.send("/signout")
    assert refused(site, second)


def playground_key(person: Person) -> str:
    reply = person.http.post("/playground/key", data={"for": "page"}, headers={"x-csrf-token": person.csrf()})
    assert reply.status_code == 200
    assert reply.headers["cache-control"] == "no-store"
    return str(reply.json()["key"])


def refused(site: Site, key: str) -> bool:
    with pytest.raises(AuthenticationError):
        site.ask(key)
    return True


def shown(reply: httpx.Response, pattern: re.Pattern[str]) -> str:
    """What a page shows this once."""
    found = pattern.search(reply.text)
    assert found, reply.text
    assert reply.headers["cache-control"] == "no-store"
    return unescape(found[1])


def test_where_nobody_signs_in_everyone_here_is_the_owner(tmp_path: Path) -> None:
    """`auth.mode = "off"`: loopback only; forms still need the token of a page of ours."""
    with open_site(tmp_path, settings=Settings(auth=AuthSettings(mode="off"))) as site:
        person = site.anybody()
        for path in ("/", "/activity", "/usage", "/models", "/playground", "/keys", "/users", "/logs", "/audit", "/profile"):
            assert person.get(path).status_code == 200, path
        assert person.http.post("/keys", data={"name": "x", "scopes": "chat"}).status_code == 403
        assert shown(person.send("/keys", name="x", scopes="chat"), SHOWN_KEY).startswith("sk-llm-")
        assert playground_key(person) == ""


def test_budgets_that_cannot_be_read_do_not_take_the_page_with_them(tmp_path: Path) -> None:
    with open_site(tmp_path, live=open_live(f"unix://{tmp_path}/none.sock")) as site:
        owner = site.owner()
        me = site.store.accounts.owner().id
        site.store.accounts.update(me, actor=me, limits=Limits(tokens_per_day=1000))
        for path in ("/", "/usage"):
            html = owner.get(path).text
            assert "Redis does not answer" in html
        assert "Overview" in owner.get("/").text
