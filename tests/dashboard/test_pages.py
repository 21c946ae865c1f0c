"""Every page, for everyone who may and may not see it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from atlas.settings import packaged
from tests.dashboard.site import Person, Site

MEMBER_PAGES = (
    "/",
    "/activity",
    "/usage",
    "/usage?range=1",
    "/usage?range=90",
    "/models",
    "/sandbox",
    "/tasks",
    "/playground",
    "/keys",
    "/profile",
)
ADMIN_PAGES = ("/users", "/bench", "/logs", "/settings", "/audit")
DOORS = ("/signin", "/setup?token=x", "/register?token=x", "/reset?token=x")
EMPTY_STATES = {
    "/": "No requests yet",
    "/activity": "No requests yet",
    "/usage": "No usage in this time",
    "/keys": "No keys yet",
    "/users": "You are the only one",
    "/sandbox": "This server has no sandbox",
    "/tasks": "This server keeps no tasks",
    "/bench": "Nothing has been measured yet",
}


class Found(HTMLParser):
    """What a browser would run, style or load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if (tag == "script" and not given.get("src")) or tag == "style":
            self.inline.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.addresses += [given[name] or "" for name in ("src", "href", "action", "srcset", "poster") if name in given]
        self.ids += [given["id"] or ""] if "id" in given else []


def check_page(person: Person, path: str) -> str:
    """What holds of every page; its HTML."""
    reply = person.get(path)
    assert reply.status_code == 200, (path, reply.text)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    for policy in reply.headers.get_list("content-security-policy"):
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    found = Found(reply.text)
    assert found.inline == [], path
    assert [address for address in found.addresses if not address.startswith(("/", "#"))] == [], path
    assert not [address for address in found.addresses if address.startswith("//")], path
    assert len(found.ids) == len(set(found.ids)), path
    assert reply.text.count("<h1") == 1, path
    assert reply.text.count("<main") == 1, path
    return reply.text


def pages_of(site: Site) -> list[str]:
    store = site.store
    keys, requests = store.keys.list(), store.usage.recent(limit=1)
    return [
        *MEMBER_PAGES,
        *ADMIN_PAGES,
        *(f"/keys/{key.id}" for key in keys),
        *(f"/users/{user.id}" for user in store.accounts.users()),
        *(f"/activity/{usage.request_id}" for usage in requests),
        "/activity?state=failed&model=nothing",
        "/logs?level=error&q=nothing",
        "/audit?before=2",
    ]


@pytest.mark.parametrize("path", DOORS[:1] + DOORS[2:])
def test_doors_open_to_everyone(empty: Site, path: str) -> None:
    check_page(empty.anybody(), path)


def test_setup_opens_until_it_is_done(site: Site, empty: Site) -> None:
    assert "Set up this server" in check_page(site.anybody(), "/setup?token=x")
    assert "Sign in" in empty.anybody().get("/setup?token=x").text


def test_every_page_of_an_empty_server(empty: Site) -> None:
    owner = empty.owner()
    for path in pages_of(empty):
        check_page(owner, path)


@pytest.mark.parametrize("path", EMPTY_STATES)
def test_empty_pages_say_what_to_do_next(empty: Site, path: str) -> None:
    html = check_page(empty.owner(), path)
    assert EMPTY_STATES[path] in html
    assert "No usage" not in html or "/" in html


@pytest.mark.parametrize("login", ["ada", "grace"])
def test_every_page_of_a_used_server_for_owner_and_admin(used: Site, login: str) -> None:
    person = used.anybody()
    person.sign_in(login)
    for path in pages_of(used):
        check_page(person, path)


def test_members_have_their_pages_and_no_others(used: Site) -> None:
    person = used.anybody()
    person.sign_in("linus")
    for path in MEMBER_PAGES:
        html = check_page(person, path)
        assert 'href="/users"' not in html
    for path in ADMIN_PAGES:
        reply = person.get(path)
        assert reply.status_code == 403, path
        assert "Not yours to open" in reply.text or "admin" in reply.text


def test_members_see_nothing_of_others(used: Site) -> None:
    """Names of other people and of their keys, their ids and their requests."""
    person = used.anybody()
    person.sign_in("linus")
    store = used.store
    others = [user for user in store.accounts.users() if user.username != "linus"]
    hidden = [user.username for user in others] + [user.id for user in others]
    hidden += [key.id for user in others for key in store.keys.list(user.id)]
    hidden += [usage.request_id for user in others for usage in store.usage.recent(limit=20, owner=user.id)]
    for path in (*MEMBER_PAGES, *(f"/activity?user={user.id}" for user in others)):
        html = person.get(path).text.replace(path, "")
        address = [f"user={user.id}" for user in others]
        for text in address:
            html = html.replace(text, "")
        words = set(re.findall(r"[\w.-]+", html))
        assert words & set(hidden) == set(), path


def test_another_users_things_are_not_there_for_a_member(used: Site) -> None:
    person = used.anybody()
    person.sign_in("linus")
    owner = used.store.accounts.owner()
    [request] = used.store.usage.recent(limit=1, owner=owner.id)
    key = used.store.keys.list(owner.id)[0]
    assert person.get(f"/activity/{request.request_id}").status_code == 404
    assert person.get(f"/keys/{key.id}").text == person.get("/keys/key_none").text
    assert person.get(f"/keys/{key.id}").status_code == 404
    assert person.send(f"/keys/{key.id}/revoke").status_code == 404
    assert person.send(f"/activity/{request.request_id}/abort").status_code == 404
    assert used.store.keys.get(key.id).revoked_at == key.revoked_at


def test_export_of_a_member_holds_their_own_requests_only(used: Site) -> None:
    person = used.anybody()
    person.sign_in("linus")
    mine = next(user for user in used.store.accounts.users() if user.username == "linus")
    rows = person.get("/usage/export/json?range=90").json()
    assert {row["owner"] for row in rows} == {mine.id}
    assert {row["user"] for row in rows} == {"linus"}


def test_pages_are_for_people_who_are_signed_in(empty: Site) -> None:
    person = empty.anybody()
    for path in (*MEMBER_PAGES, *ADMIN_PAGES, "/dash/events?page=overview", "/usage/export/csv"):
        reply = person.http.get(path, follow_redirects=False)
        assert reply.status_code == 303, path
        assert reply.headers["location"].startswith("/signin?next=%2F")


def test_an_api_key_opens_no_page(used: Site) -> None:
    reply = used.anybody(authorization=f"Bearer {used.key(scopes=('chat', 'admin')).key}").http.get("/", follow_redirects=False)
    assert reply.status_code in (303, 401)


def test_unknown_things_are_pages_too(empty: Site) -> None:
    owner = empty.owner()
    for path in ("/keys/key_none", "/users/usr_none", "/activity/req_none", "/usage/export/xml"):
        reply = owner.get(path)
        assert reply.status_code == 404, path
        assert "<h1>Nothing here</h1>" in reply.text


@pytest.mark.parametrize(
    "path", ["/activity?model=%00", "/activity/%00", "/activity?before=1,%00", "/keys/%0a", "/logs?q=%1b", "/signin?next=%00"]
)
def test_control_characters_in_an_address_are_refused_and_not_repeated(empty: Site, path: str) -> None:
    reply = empty.owner().get(path)
    assert reply.status_code == 400, path
    assert "control characters" in reply.text
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", reply.text)


@pytest.mark.parametrize(
    "query", ["before=nonsense", "before=nan,req_1", "before=-inf,req_1", "state=nothing", "range=1000", "user=%F0"]
)
def test_nonsense_in_an_address_is_an_ordinary_page(empty: Site, query: str) -> None:
    owner = empty.owner()
    for path in ("/activity", "/usage", "/audit", "/logs"):
        assert owner.get(f"{path}?{query}").status_code == 200, path


def test_overview_tells_how_to_connect_with_this_servers_address(empty: Site) -> None:
    html = check_page(empty.owner(), "/")
    for client in ("openai (Python)", "OpenCode", "Claude Code", "aider", "Continue"):
        assert client in html
    assert f"{empty.url}/v1" in html


def test_charts_have_a_table_that_says_the_same(used: Site) -> None:
    html = check_page(used.owner(), "/usage")
    total = sum(row.prompt_tokens for row in used.store.usage.totals(since=0, until=4e9, group="day"))
    assert total > 0
    assert 'aria-describedby="by-day-table"' in html
    table = html[html.index('id="by-day-table"') :]
    table = table[: table.index("</table>")]
    assert table.count('<th scope="row">') == 7
    assert '<table class="heat">' in html


def test_usage_adds_up_on_the_page(used: Site) -> None:
    """Users, keys and models are three cuts through the same requests."""
    html = check_page(used.owner(), "/usage?range=90")
    totals = used.store.usage.totals(since=0, until=4e9, group="model")
    requests = sum(row.requests for row in totals)
    for section in ("by-user", "by-key", "by-model"):
        body = html[html.index(f'id="{section}-title"') :]
        body = body[body.index("<tbody>") : body.index("</tbody>")]
        counts = re.findall(r'</th><td class="num">([\d,]+)</td>', body)
        assert sum(int(count.replace(",", "")) for count in counts) == requests, section


def test_the_theme_is_remembered_in_a_cookie(empty: Site) -> None:
    person = empty.anybody()
    reply = person.http.post("/dash/theme", data={"theme": "dark", "back": "/signin"})
    assert reply.status_code == 200
    assert 'data-theme="dark"' in person.get("/signin").text
    reply = person.http.post("/dash/theme", data={"theme": "light", "back": "//evil.example"}, follow_redirects=False)
    assert reply.headers["location"] == "/"


def test_assets_are_ours_and_last(empty: Site) -> None:
    person = empty.anybody()
    html = person.get("/signin").text
    for address in re.findall(r'(?:href|src)="(/dash/assets/[^"]+)"', html):
        reply = person.get(address)
        assert reply.status_code == 200
        assert "immutable" in reply.headers["cache-control"]
    for path in ("/dash/assets/base.html", "/dash/assets/..%2Fbase.html", "/dash/assets/none.css"):
        assert person.get(path).status_code == 404


def test_assets_and_templates_name_no_other_host() -> None:
    folder = packaged("templates")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "").replace('placeholder": "https://"', "")
        assert not re.search(r"https?://\w", text), path


def test_assets_keep_nothing_in_the_browser() -> None:
    """No key, or anything else, in storage; and no code made of text."""
    for path in (packaged("templates") / "assets").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        for word in ("localStorage", "sessionStorage", "indexedDB", "document.cookie", "eval(", "new Function"):
            assert word not in text, path


def test_people_who_are_signed_in_are_led_past_the_door(empty: Site) -> None:
    owner = empty.owner()
    reply = owner.http.get("/signin?next=/keys", follow_redirects=False)
    assert (reply.status_code, reply.headers["location"]) == (303, "/keys")
