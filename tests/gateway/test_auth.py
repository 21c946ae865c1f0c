from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from litestar import Response, get

from atlas.engine import ScriptedEngine
from atlas.gateway import create_app
from atlas.settings import AuthSettings, ServerSettings
from atlas.store import OpenedSession
from tests.gateway.conftest import KEY, Running, deps_of, serving, shared_store


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(["hi"]))) as running:
        yield running


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("headers", [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"x-api-key": KEY}])
def test_both_headers_carry_a_key_on_both_dialects(server: Running, path: str, headers: dict[str, str]) -> None:
    assert httpx.post(server.url + path, json={}, headers=headers).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer wrong"},
        {"x-api-key": "wrong"},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer"},
        {"cookie": f"key={KEY}"},
    ],
)
def test_anything_but_the_key_is_401(server: Running, headers: dict[str, str]) -> None:
    reply = httpx.get(server.url + "/v1/models", headers=headers)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert KEY not in reply.text


def test_two_different_keys_are_refused(server: Running) -> None:
    both = {"authorization": f"Bearer {KEY}", "x-api-key": "another"}
    assert httpx.get(server.url + "/v1/models", headers=both).status_code == 400
    same = {"authorization": f"Bearer {KEY}", "x-api-key": KEY}
    assert httpx.get(server.url + "/v1/models", headers=same).status_code == 200


def test_auth_off_needs_no_key() -> None:
    with serving(deps_of(ScriptedEngine(["hi"]), auth=AuthSettings(mode="off"))) as server:
        assert httpx.get(server.url + "/v1/models").status_code == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "192.168.0.7:8000", "LOCALHOST"])
def test_our_own_names_and_addresses_are_answered_on_any_port(server: Running, host: str) -> None:
    assert httpx.get(server.url + "/livez", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "localhost@evil.example"])
def test_a_rebound_name_is_refused(server: Running, host: str) -> None:
    reply = httpx.get(server.url + "/livez", headers={"host": host})
    assert reply.status_code == 400
    assert "error" in reply.json()


def test_allowed_hosts_adds_names() -> None:
    with serving(deps_of(None, server=ServerSettings(allowed_hosts=("gpu.lan",)))) as server:
        assert httpx.get(server.url + "/livez", headers={"host": "gpu.lan:8000"}).status_code == 200


def test_cors_is_off_unless_set(server: Running) -> None:
    reply = httpx.get(server.url + "/livez", headers={"origin": "http://app.example"})
    assert "access-control-allow-origin" not in reply.headers


def test_cors_answers_listed_origins_preflight_and_errors_included() -> None:
    origin = "http://app.example"
    with serving(deps_of(ScriptedEngine(["hi"]), server=ServerSettings(cors_origins=(origin,)))) as server:
        asked = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        preflight = httpx.options(server.url + "/v1/chat/completions", headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == origin
        assert httpx.get(server.url + "/v1/models", headers={"origin": origin}).headers["access-control-allow-origin"] == origin
        other = httpx.get(server.url + "/v1/models", headers={"origin": "http://evil.example"})
        assert other.headers.get("access-control-allow-origin") != "http://evil.example"


def test_a_handler_that_does_not_say_who_may_call_it_is_never_served() -> None:
    @get("/open")
    async def forgotten() -> None: ...

    @get("/misspelt", opt={"access": "pubilc"})
    async def misspelt() -> None: ...

    with pytest.raises(RuntimeError, match="GET /misspelt, GET /open"):
        create_app(deps_of(None), [forgotten, misspelt])


@pytest.mark.parametrize(
    "path", ["/slots", "/slots/0", "/props", "/lora-adapters", "/completion", "/infill", "/internal/lens/reload"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_v1s_open_routes_are_refused_by_name(server: Running, method: str, path: str) -> None:
    for headers in ({}, {"x-api-key": KEY}):
        reply = httpx.request(method, server.url + path, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "route_refused")
        assert "on purpose" in reply.json()["error"]["message"]


# -- sessions --


@pytest.fixture(scope="module")
def opened() -> OpenedSession:
    return shared_store().sessions.open(shared_store().accounts.owner(), source="", user_agent="")


def cookie(opened: OpenedSession, name: str = "atlas") -> dict[str, str]:
    return {"cookie": f"{name}={opened.token}"}


def toggle(server: Running, headers: dict[str, str], path: str = "/api/keys/key_0/toggle") -> int:
    """Status of an unsafe request that finds nothing to change: 404 is past the gate."""
    return httpx.patch(server.url + path, headers=headers).status_code


def test_v1_routes_do_not_look_at_cookies(server: Running, opened: OpenedSession) -> None:
    assert httpx.get(f"{server.url}/api/auth/me", headers=cookie(opened)).status_code == 200
    for path in ("/v1/models", "/openapi.json"):
        assert httpx.get(server.url + path, headers=cookie(opened)).status_code == 401
    chat = {"origin": server.url, "x-csrf-token": opened.session.csrf} | cookie(opened)
    assert httpx.post(f"{server.url}/v1/chat/completions", json={}, headers=chat).status_code == 401


def test_a_key_beside_a_cookie_is_what_counts(server: Running, opened: OpenedSession) -> None:
    both = {"authorization": "Bearer wrong"} | cookie(opened)
    assert httpx.get(f"{server.url}/api/auth/me", headers=both).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "SELF", "x-csrf-token": "RIGHT"}, 404),
        ({"sec-fetch-site": "same-origin", "x-csrf-token": "RIGHT"}, 404),
        ({"sec-fetch-site": "none", "x-csrf-token": "RIGHT"}, 404),
        ({"x-csrf-token": "RIGHT"}, 403),
        ({"origin": "SELF"}, 403),
        ({"origin": "SELF", "x-csrf-token": "wrong"}, 403),
        ({"origin": "http://evil.example", "x-csrf-token": "RIGHT"}, 403),
        ({"origin": "null", "x-csrf-token": "RIGHT"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "SELF", "x-csrf-token": "RIGHT"}, 403),
        ({"sec-fetch-site": "same-site", "x-csrf-token": "RIGHT"}, 403),
    ],
)
def test_a_session_changes_things_from_our_own_pages_only(
    server: Running, opened: OpenedSession, headers: dict[str, str], status: int
) -> None:
    values = {"SELF": server.url, "RIGHT": opened.session.csrf}
    assert toggle(server, cookie(opened) | {name: values.get(value, value) for name, value in headers.items()}) == status


def test_another_sessions_token_does_not_do(server: Running, opened: OpenedSession) -> None:
    store = shared_store()
    other = store.sessions.open(store.accounts.owner(), source="", user_agent="")
    assert toggle(server, cookie(opened) | {"origin": server.url, "x-csrf-token": other.session.csrf}) == 403


def test_over_tls_only_the_host_cookie_counts(opened: OpenedSession) -> None:
    behind = ServerSettings(trusted_proxies=("127.0.0.1",))
    with serving(deps_of(None, server=behind)) as server:
        secure = {"x-forwarded-proto": "https"}
        url = f"{server.url}/api/auth/me"
        assert httpx.get(url, headers=cookie(opened) | secure).status_code == 401
        assert httpx.get(url, headers=cookie(opened, "__Host-atlas") | secure).status_code == 200
        assert httpx.get(url, headers=cookie(opened, "__Host-atlas")).status_code == 401


@get("/page", opt={"access": "page"})
async def page() -> Response[str]:
    return Response("<p>page</p>", media_type="text/html")


def test_pages_send_people_to_sign_in_and_scripts_a_401(opened: OpenedSession) -> None:
    with serving(deps_of(None), extra_routes=[page]) as server:
        url = f"{server.url}/page?a=1&b=//evil"
        sent = httpx.get(url)
        assert (sent.status_code, sent.headers["location"]) == (303, "/signin?next=%2Fpage%3Fa%3D1%26b%3D%2F%2Fevil")
        assert httpx.get(url, headers={"x-api-key": KEY}).status_code == 303
        assert httpx.get(url, headers={"sec-fetch-dest": "empty"}).status_code == 401
        assert httpx.get(url, headers=cookie(opened)).text == "<p>page</p>"


# -- what browsers are told --


def test_every_reply_tells_browsers_what_not_to_do(server: Running) -> None:
    for path in ("/livez", "/nope", "/v1/models", "/api/auth/me"):
        headers = httpx.get(server.url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert httpx.get(f"{server.url}/api/auth/me").headers["cache-control"] == "no-store"


def test_pages_run_and_load_nothing_but_our_own_files(opened: OpenedSession) -> None:
    with serving(deps_of(None), extra_routes=[page]) as server:
        headers = httpx.get(f"{server.url}/page", headers=cookie(opened)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "object-src": "'none'",
    }
    assert headers["cache-control"] == "no-store"


# -- with auth.mode = "off" --


def test_without_keys_other_sites_still_cannot_make_a_browser_act() -> None:
    with serving(deps_of(ScriptedEngine(["hi"]), auth=AuthSettings(mode="off"))) as server:
        url = f"{server.url}/api/requests/req_0/abort"
        assert httpx.post(url).status_code == 404
        assert httpx.post(url, headers={"origin": "http://evil.example"}).status_code == 403
        assert httpx.post(url, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert httpx.post(url, headers={"sec-fetch-site": "same-origin"}).status_code == 404
