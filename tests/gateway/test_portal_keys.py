"""/api/keys and /api/validate-key over HTTP: whose key it is decides, and a change counts from the next request on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest

from atlas.engine import ScriptedEngine
from atlas.errors import TooManyAttempts
from atlas.gateway.throttle import Throttle
from atlas.store import Store
from tests.gateway.conftest import MODEL, Running, deps_of, new_store, serving
from tests.gateway.people import People, bearer, settle, signed_in, token_of

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = new_store(tmp_path_factory.mktemp("keys") / "data")
    yield store
    store.close()


@pytest.fixture(scope="module")
def people(store: Store) -> People:
    return settle(store)


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(["Hello world!"], model=MODEL), store=store)) as running:
        yield running


@pytest.fixture
def member(server: Running, store: Store, people: People) -> Iterator[httpx.Client]:
    with signed_in(server.url, store, people.member) as client:
        yield client


def models_with(server: Running, key: str) -> int:
    """Status of the cheapest route that needs a key."""
    return httpx.get(f"{server.url}/v1/models", headers=bearer(key)).status_code


def chat_with(server: Running, key: str, path: str = "/v1/chat/completions") -> httpx.Response:
    return httpx.post(server.url + path, json=CHAT | {"max_tokens": 5}, headers=bearer(key))


def test_a_key_is_shown_once_and_works_at_once(server: Running, member: httpx.Client) -> None:
    made = member.post("/api/keys", json={"name": "editor", "rate_limit": 100, "expires_days": 30}).json()
    assert made["key"].startswith("sk-llm-")
    assert (made["name"], made["rate_limit"], made["is_active"]) == ("editor", 100, True)
    assert datetime.fromisoformat(made["expires_at"]).timestamp() == pytest.approx(time.time() + 30 * 86400, abs=60)
    assert models_with(server, made["key"]) == 200
    listed = member.get("/api/keys").json()
    found = next(entry for entry in listed["keys"] if entry["id"] == made["id"])
    assert listed["total"] == len(listed["keys"])
    assert found["key_prefix"].startswith(made["key"][:12])
    assert made["key"] not in str(listed)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x" * 101},
        {"name": "x", "rate_limit": 0},
        {"name": "x", "rate_limit": 10_001},
        {"name": "x", "expires_days": 366},
        {"name": "x", "scopes": ["everything"]},
        {"name": "x", "scopes": ["admin"]},
        {"name": "x", "models": []},
        {"name": "x", "limits": {"tokens_per_day": -1}},
        {"name": "x", "limits": {"no_such_limit": 1}},
        {"name": "x", "owner": "usr_0000000000000000"},
    ],
)
def test_what_does_not_fit_is_refused(member: httpx.Client, body: dict[str, Any]) -> None:
    before = member.get("/api/keys").json()["total"]
    assert member.post("/api/keys", json=body).status_code == 400
    assert member.get("/api/keys").json()["total"] == before


def test_toggle_and_delete_count_from_the_next_request(server: Running, member: httpx.Client) -> None:
    made = member.post("/api/keys", json={"name": "switched"}).json()
    key, path = made["key"], f"/api/keys/{made['id']}"
    assert models_with(server, key) == 200
    assert member.patch(f"{path}/toggle").json()["is_active"] is False
    assert models_with(server, key) == 401
    assert member.patch(f"{path}/toggle").json()["is_active"] is True
    assert models_with(server, key) == 200
    assert member.delete(path).status_code == 200
    assert models_with(server, key) == 401


def test_whether_a_key_may_leave_this_machine_is_shown_and_can_be_changed(server: Running, member: httpx.Client) -> None:
    made = member.post("/api/keys", json={"name": "editor"}).json()
    assert made["allow_remote"] is False
    changed = member.patch(f"/api/keys/{made['id']}", json={"allow_remote": True}).json()
    assert changed["allow_remote"] is True
    assert server.deps.store.keys.verify(made["key"]).allow_remote
    assert member.post("/api/keys", json={"name": "away", "allow_remote": True}).json()["allow_remote"] is True


def test_rotation_keeps_the_old_key_for_its_grace_and_no_longer(server: Running, member: httpx.Client) -> None:
    made = member.post("/api/keys", json={"name": "rotated", "models": [MODEL]}).json()
    kept = member.post(f"/api/keys/{made['id']}/rotate", json={"grace_s": 600}).json()
    assert (kept["name"], kept["models"]) == ("rotated", [MODEL])
    assert (models_with(server, made["key"]), models_with(server, kept["key"])) == (200, 200)
    last = member.post(f"/api/keys/{kept['id']}/rotate", json={}).json()
    assert (models_with(server, kept["key"]), models_with(server, last["key"])) == (401, 200)


def test_scopes_and_models_hold_on_both_headers_and_both_dialects(server: Running, member: httpx.Client) -> None:
    made = member.post("/api/keys", json={"name": "narrow", "scopes": ["embeddings"]}).json()
    for headers in (bearer(made["key"]), {"x-api-key": made["key"]}):
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions", "/tokenize"):
            assert httpx.post(server.url + path, json=CHAT, headers=headers).status_code == 403
    member.patch(f"/api/keys/{made['id']}", json={"scopes": ["chat"], "models": ["another"]})
    for path in ("/v1/chat/completions", "/v1/messages"):
        refused = chat_with(server, made["key"], path)
        assert refused.status_code == 403
        assert MODEL in refused.json()["error"]["message"]
    assert httpx.post(f"{server.url}/tokenize", json={"content": "x"}, headers=bearer(made["key"])).status_code == 403
    assert httpx.get(f"{server.url}/v1/models/{MODEL}", headers=bearer(made["key"])).status_code == 403
    assert httpx.get(f"{server.url}/v1/models", headers=bearer(made["key"])).json()["data"] == []
    member.patch(f"/api/keys/{made['id']}", json={"models": None})
    assert chat_with(server, made["key"]).status_code == 200


def test_others_keys_look_as_if_they_did_not_exist(server: Running, store: Store, people: People, member: httpx.Client) -> None:
    theirs = store.keys.mint("theirs", owner=people.other.id)
    calls = [("PATCH", ""), ("PATCH", "/toggle"), ("POST", "/rotate"), ("DELETE", "")]
    for method, rest in calls:
        reply = member.request(method, f"/api/keys/{theirs.info.id}{rest}", json={})
        missing = member.request(method, f"/api/keys/key_0000000000000000{rest}", json={})
        assert (reply.status_code, missing.status_code) == (404, 404)
        assert reply.text.replace(theirs.info.id, "") == missing.text.replace("key_0000000000000000", "")
    assert theirs.info.id not in member.get("/api/keys").text
    assert member.get("/api/keys", params={"user": people.other.id}).status_code == 403
    assert models_with(server, theirs.key) == 200


def test_an_admin_sees_and_ends_members_keys_but_never_gets_one(server: Running, store: Store, people: People) -> None:
    members = store.keys.mint("members", owner=people.member.id)
    owners = store.keys.mint("owners", owner=people.owner.id)
    with signed_in(server.url, store, people.admin) as admin:
        listed = admin.get("/api/keys", params={"user": people.member.id}).json()["keys"]
        assert members.info.id in {entry["id"] for entry in listed}
        assert admin.post(f"/api/keys/{members.info.id}/rotate", json={}).status_code == 403
        assert admin.delete(f"/api/keys/{owners.info.id}").status_code == 404
        assert admin.delete(f"/api/keys/{members.info.id}").status_code == 200
    assert (models_with(server, members.key), models_with(server, owners.key)) == (401, 200)


def test_a_key_cannot_make_keys(server: Running, store: Store, people: People) -> None:
    key = store.keys.mint("k", owner=people.owner.id, scopes=("admin", "chat")).key
    for method, path in (("GET", "/api/keys"), ("POST", "/api/keys"), ("GET", "/api/auth/me")):
        assert httpx.request(method, server.url + path, json={"name": "x"}, headers=bearer(key)).status_code == 403


# -- /api/validate-key --


def test_validate_key_has_v1s_shape_and_needs_somebody_known(server: Running, store: Store, people: People) -> None:
    key = store.keys.mint("service", owner=people.member.id).key
    url, body = f"{server.url}/api/validate-key", {"api_key": key}
    assert httpx.post(url, json=body).status_code == 401
    right = httpx.post(url, json=body, headers=bearer(key))
    assert right.json() == {"valid": True, "user": "mara", "key_name": "service", "rate_limit": None, "error": None}
    wrong = httpx.post(url, json={"api_key": "sk-llm-wrong"}, headers=bearer(token_of(store, people.member)))
    assert (wrong.status_code, wrong.json()["valid"]) == (401, False)
    assert httpx.post(url, json={}, headers=bearer(key)).status_code == 400


def test_validate_key_is_no_oracle(store: Store, people: People) -> None:
    with serving(deps_of(None, store=store)) as server, signed_in(server.url, store, people.other) as client:
        statuses = [client.post("/api/validate-key", json={"api_key": f"sk-llm-{i}"}).status_code for i in range(31)]
        assert statuses == [401] * 30 + [429]


def test_the_throttle_admits_its_limit_in_any_window() -> None:
    now_s = [0.0]
    throttle = Throttle(3, window_s=60.0, clock=lambda: now_s[0])
    for at_s in (0.0, 30.0, 59.0):
        now_s[0] = at_s
        throttle.count("a")
    with pytest.raises(TooManyAttempts) as refused:
        throttle.count("a")
    assert refused.value.retry_after_s == 1.0
    throttle.count("b")
    now_s[0] = 60.0
    throttle.count("a")
    with pytest.raises(TooManyAttempts):
        throttle.count("a")
