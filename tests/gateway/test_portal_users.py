"""/api/users, /api/audit, /api/admin/models over HTTP: who may change whom, and what is written down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from atlas.engine import ScriptedEngine
from atlas.store import Store
from atlas.types import Limits
from tests.gateway.conftest import MODEL, Running, deps_of, serving
from tests.gateway.people import PASSWORD, People, bearer, settle, signed_in


@pytest.fixture
def people(store: Store) -> People:
    return settle(store)


@pytest.fixture
def server(store: Store) -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(["hi"], model=MODEL), store=store)) as running:
        yield running


@pytest.fixture
def admin(server: Running, store: Store, people: People) -> Iterator[httpx.Client]:
    with signed_in(server.url, store, people.admin) as client:
        yield client


@pytest.fixture
def owner(server: Running, store: Store, people: People) -> Iterator[httpx.Client]:
    with signed_in(server.url, store, people.owner) as client:
        yield client


def test_everybody_is_listed_for_admins(admin: httpx.Client, people: People) -> None:
    listed = admin.get("/api/users").json()
    assert [(user["username"], user["role"]) for user in listed["users"]] == [
        ("olga", "owner"),
        ("anna", "admin"),
        ("mara", "member"),
        ("otto", "member"),
    ]
    assert listed["total"] == 4
    assert "password" not in str(listed)


def test_limits_are_set_and_count(admin: httpx.Client, store: Store, people: People) -> None:
    path = f"/api/users/{people.member.id}"
    reply = admin.patch(path, json={"limits": {"requests_per_minute": 5, "tokens_per_day": 1000}})
    assert reply.json()["limits"] == {"requests_per_minute": 5, "tokens_per_day": 1000}
    key = store.keys.mint("k", owner=people.member.id).key
    assert store.keys.verify(key).user_limits == Limits(requests_per_minute=5, tokens_per_day=1000)
    assert admin.patch(path, json={"limits": {"tokens_per_day": 0}}).status_code == 400
    assert admin.patch(path, json={"username": "boss"}).status_code == 400
    assert admin.patch("/api/users/usr_0000000000000000", json={}).status_code == 404


@pytest.mark.parametrize("body", [{"role": "admin"}, {"role": "owner"}])
def test_only_owners_make_administrators(admin: httpx.Client, owner: httpx.Client, people: People, body: dict[str, Any]) -> None:
    path = f"/api/users/{people.member.id}"
    assert admin.patch(path, json=body).status_code == 403
    assert owner.patch(path, json=body).json()["role"] == body["role"]


def test_an_admin_cannot_touch_administrators_or_owners(admin: httpx.Client, people: People) -> None:
    for target in (people.owner, people.admin):
        path = f"/api/users/{target.id}"
        for body in ({"disabled": True}, {"role": "member"}, {"email": "mine@example.org"}, {"limits": {"concurrency": 1}}):
            assert admin.patch(path, json=body).status_code == 403
        assert admin.post(f"{path}/reset").status_code == 403
    assert admin.post("/api/users/invite", json={"role": "admin"}).status_code == 403
    assert admin.post("/api/users/invite", json={"role": "owner"}).status_code == 400


def test_the_last_owner_stays(owner: httpx.Client, people: People) -> None:
    for body in ({"disabled": True}, {"role": "member"}):
        assert owner.patch(f"/api/users/{people.owner.id}", json=body).status_code == 409


def test_invitations_are_made_listed_followed_and_taken_back(server: Running, admin: httpx.Client) -> None:
    made = admin.post("/api/users/invite", json={"email": "new@example.org"}).json()
    assert made["path"] == f"/register?token={made['token']}"
    kept = admin.post("/api/users/invite", json={}).json()
    listed = admin.get("/api/users/invitations").json()
    assert {entry["id"] for entry in listed["invitations"]} == {made["id"], kept["id"]}
    assert made["token"] not in str(listed)
    assert admin.delete(f"/api/users/invitations/{made['id']}").status_code == 200
    assert admin.delete(f"/api/users/invitations/{made['id']}").status_code == 404
    body = {"username": "newt", "password": PASSWORD}
    assert httpx.post(f"{server.url}/api/auth/register", json=body | {"token": made["token"]}).status_code == 401
    assert httpx.post(f"{server.url}/api/auth/register", json=body | {"token": kept["token"]}).status_code == 200


def test_changes_are_audited_without_secrets(admin: httpx.Client, store: Store, people: People) -> None:
    admin.patch(f"/api/users/{people.member.id}", json={"disabled": True})
    token = admin.post("/api/users/invite", json={}).json()["token"]
    reply = admin.get("/api/audit", params={"verify": True})
    body = reply.json()
    assert (body["is_verified"], body["broken_seq"]) == (True, None)
    newest = [(entry["actor"], entry["action"], entry["object"]) for entry in body["entries"][:2]]
    assert newest[1] == (people.admin.id, "user.updated", people.member.id)
    assert newest[0][1] == "invitation.made"
    assert token not in reply.text
    assert PASSWORD not in reply.text
    before = body["entries"][0]["seq"]
    assert admin.get("/api/audit", params={"before": before, "limit": 1}).json()["entries"][0]["seq"] == before - 1
    assert admin.get("/api/audit", params={"limit": 0}).status_code == 400


def test_a_demoted_admins_key_loses_its_scope_at_once(server: Running, store: Store, people: People) -> None:
    key = store.keys.mint("k", owner=people.admin.id, scopes=("admin",)).key
    url = f"{server.url}/api/users"
    assert httpx.get(url, headers=bearer(key)).status_code == 200
    store.accounts.update(people.admin.id, actor=people.owner.id, role="member")
    assert httpx.get(url, headers=bearer(key)).status_code == 403


def test_v1s_catalogue_can_be_read_and_its_changes_are_refused_by_name(admin: httpx.Client) -> None:
    listed = admin.get("/api/admin/models").json()
    assert [(model["model_id"], model["is_active"]) for model in listed["models"]] == [(MODEL, True), ("other", False)]
    assert set(listed["models"][0]) >= {"name", "context_length", "max_output", "is_auto_discovered", "source_server"}
    ways = {
        ("POST", ""): "atlas models add",
        ("POST", "/discover?server_url=http://169.254.169.254/"): "remote.url",
        ("PATCH", f"/{MODEL}"): "engine.context_tokens",
        ("DELETE", f"/{MODEL}"): "atlas models remove",
    }
    for (method, rest), way_out in ways.items():
        reply = admin.request(method, f"/api/admin/models{rest}")
        assert reply.status_code == 400
        assert way_out in reply.json()["error"]["message"]
