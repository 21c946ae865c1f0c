from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from atlas.engine import ScriptedEngine
from atlas.settings import AuthSettings, ServerSettings
from tests.gateway.conftest import KEY, Running, deps_of, serving


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
