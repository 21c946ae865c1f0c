"""/api/usage, its exports, and /api/requests: true numbers, and only one's own."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from atlas.engine import ScriptedEngine
from atlas.gateway.portal_usage import to_csv
from atlas.store import Store
from atlas.types import Usage, User
from tests.gateway.conftest import MODEL, Running, deps_of, serving, wait_for
from tests.gateway.metered import MeteredServer, metered, redis
from tests.gateway.people import People, settle, signed_in

__all__ = ["metered", "redis"]  # fixtures

DAY_S = 86400.0
NEARLY_S = 20.0  # longer than a test here takes


@pytest.fixture(autouse=True)
def one_day() -> None:
    """Each test is within one day (UTC): when it nearly ends, the next one is waited for."""
    left_s = DAY_S - time.time() % DAY_S
    if left_s < NEARLY_S:
        time.sleep(left_s)


@pytest.fixture
def people(store: Store) -> People:
    return settle(store)


@pytest.fixture
def server(store: Store) -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(["word " * 400], model=MODEL, delay_s=0.02), store=store)) as running:
        yield running


def used(store: Store, user: User, *, ago_s: float = 0.0, prompt: int = 10, completion: int = 3, **more: Any) -> None:
    number = next(NUMBERS)
    usage = Usage(
        request_id=f"req_{number}",
        at=time.time() - ago_s,
        owner=user.id,
        key_id=f"key_{user.username}",
        route="/v1/chat/completions",
        model=MODEL,
        state="completed",
        prompt_tokens=prompt,
        completion_tokens=completion,
    )
    store.usage.settle(msgspec.structs.replace(usage, **more)).result()


NUMBERS = iter(range(1_000_000))


def test_usage_is_true_split_and_ones_own(server: Running, store: Store, people: People) -> None:
    used(store, people.member, prompt=10, completion=3)
    used(store, people.member, prompt=20, completion=5, ago_s=3 * DAY_S)
    used(store, people.other, prompt=1000, completion=1000)
    with signed_in(server.url, store, people.member) as client:
        assert client.get("/api/usage").json() == {
            "total_requests": 2,
            "total_tokens_input": 30,
            "total_tokens_output": 8,
            "requests_today": 1,
            "tokens_today": 13,
            "groups": None,
        }
        assert client.get("/api/usage", params={"user": people.other.id}).status_code == 403
        assert client.get("/api/usage", params={"user": "all"}).status_code == 403
    with signed_in(server.url, store, people.admin) as admin:
        assert admin.get("/api/usage").json()["total_requests"] == 0
        assert admin.get("/api/usage", params={"user": people.member.id}).json()["total_requests"] == 2
        assert admin.get("/api/usage", params={"user": "all"}).json()["total_tokens_input"] == 1030


@pytest.mark.parametrize(
    ("group", "names"),
    [("key", {"key_mara"}), ("model", {MODEL, "other"}), ("day", 2), ("hour", 2), ("user", 1)],
)
def test_sums_by_group(server: Running, store: Store, people: People, group: str, names: set[str] | int) -> None:
    used(store, people.member)
    used(store, people.member, ago_s=2 * DAY_S, model="other")
    used(store, people.other)
    with signed_in(server.url, store, people.member) as client:
        groups = client.get("/api/usage", params={"group": group}).json()["groups"]
    found = {total["group"] for total in groups}
    assert found == names if isinstance(names, set) else len(found) == names
    assert sum(total["requests"] for total in groups) == 2


def test_from_and_to_bound_the_sums(server: Running, store: Store, people: People) -> None:
    used(store, people.member, ago_s=10 * DAY_S)
    used(store, people.member)
    day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 10 * DAY_S))
    with signed_in(server.url, store, people.member) as client:
        for params, count in (({"from": day, "to": day}, 1), ({"from": day}, 2), ({"to": day}, 1), ({}, 2)):
            groups = client.get("/api/usage", params={"group": "day", **params}).json()["groups"]
            assert sum(total["requests"] for total in groups) == count, params
        for params in ({"from": "yesterday"}, {"to": "2026-13-01"}, {"from": "2030-01-03", "to": "2030-01-01"}):
            assert client.get("/api/usage", params=params).status_code == 400
        assert client.get("/api/usage", params={"group": "colour"}).status_code == 400


def test_exports_are_csv_and_json_lines(server: Running, store: Store, people: People) -> None:
    for number in range(3):
        used(store, people.member, ago_s=number)
    used(store, people.other)
    with signed_in(server.url, store, people.member) as client:
        sums = client.get("/api/usage", params={"group": "model", "format": "csv"})
        assert sums.headers["content-type"].startswith("text/csv")
        assert [row["group"] for row in csv.DictReader(io.StringIO(sums.text))] == [MODEL]
        rows = list(csv.DictReader(io.StringIO(client.get("/api/usage/export").text)))
        assert {row["owner"] for row in rows} == {people.member.id}
        assert len(rows) == 3
        lines = client.get("/api/usage/export", params={"format": "jsonl"}).text.splitlines()
        assert [msgspec.json.decode(line, type=Usage).request_id for line in lines] == [row["request_id"] for row in rows]
        assert client.get("/api/usage/export", params={"from": "2001-01-01", "to": "2001-01-02"}).text.count("\n") == 1


def test_no_cell_of_a_csv_is_a_formula() -> None:
    usage = Usage(request_id="=1+1", at=0.0, owner="@x", key_id="k", route="r", model="-m", state="completed", finish="+1")
    row = next(csv.DictReader(io.StringIO("".join(to_csv(Usage.__struct_fields__, [usage])))))
    assert (row["request_id"], row["owner"], row["model"], row["finish"]) == ("'=1+1", "'@x", "'-m", "'+1")


def test_running_requests_are_seen_and_ended_by_their_owner_and_by_admins(server: Running, store: Store, people: People) -> None:
    key = store.keys.mint("k", owner=people.member.id).key
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    replies: list[httpx.Response] = []

    def ask() -> None:
        headers = {"authorization": f"Bearer {key}"}
        replies.append(httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60))

    for ender in (people.member, people.admin):
        thread = threading.Thread(target=ask)
        thread.start()
        with signed_in(server.url, store, people.other) as other, signed_in(server.url, store, ender) as client:
            seen = {"user": people.member.id}
            wait_for(lambda: bool(client.get("/api/requests", params=seen).json()["open"]))  # noqa: B023 - used within the turn
            request_id = client.get("/api/requests", params=seen).json()["open"][0]["usage"]["request_id"]
            assert other.get("/api/requests").json()["open"] == []
            assert other.post(f"/api/requests/{request_id}/abort").status_code == 404
            assert client.post(f"/api/requests/{request_id}/abort").status_code == 200
        thread.join(timeout=30)
    assert [reply.status_code for reply in replies] == [403, 403]
    assert replies[0].json()["error"]["code"] == "request_aborted"
    aborted = [entry.actor for entry in store.audit.entries() if entry.action == "request.aborted"]
    assert aborted == [people.admin.id, people.member.id]


def test_a_budget_says_what_is_used_of_it(metered: MeteredServer) -> None:
    server = metered()
    key = server.key(tokens_per_day=1000)
    assert server.chat(key).status_code == 200
    used = server.one_usage.prompt_tokens + server.one_usage.completion_tokens
    with server.http(key) as http:
        [budget] = http.get("/api/budget").json()["budgets"]
    assert budget == {"kind": "tokens", "period": "day", "whose": "key", "limit": 1000, "used": used}


def test_without_limits_there_is_no_budget(server: Running, store: Store, people: People) -> None:
    with signed_in(server.url, store, people.member) as client:
        assert client.get("/api/budget").json() == {"budgets": []}
