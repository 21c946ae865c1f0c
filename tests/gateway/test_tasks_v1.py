"""The task routes of ATLAS 1, in its shapes."""

from __future__ import annotations

import pytest

from tests.gateway.conftest import wait_for
from tests.gateway.metered import redis
from tests.gateway.people import People, signed_in
from tests.gateway.tasking import TASK, Tasking, idle, idle_people, server

__all__ = ["idle", "idle_people", "redis", "server"]  # fixtures


def test_the_routes_of_the_first_version_answer_in_its_shapes(server: Tasking) -> None:
    with server.http() as http:
        made = http.post("/v1/tasks/submit", json={"prompt": TASK["task"], "test_code": TASK["tests"], "type": "code_generation"})
        assert (made.status_code, set(made.json()), made.json()["status"]) == (200, {"task_id", "status"}, "pending")
        task_id = made.json()["task_id"]
        wait_for(lambda: http.get(f"/v1/tasks/{task_id}/status").json()["status"] not in ("pending", "running"), 60)
        status = http.get(f"/v1/tasks/{task_id}/status").json()
        stats = http.get("/v1/queue/stats").json()
    assert (status["id"], status["status"], status["attempts"]) == (task_id, "completed", 1)
    assert (status["result"]["success"], status["result"]["stop_reason"]) == (True, "success")
    assert status["result"]["final_code"] == "def f(x):\n    return x + 1\n"
    assert status["completed_at"].endswith("+00:00")
    assert set(stats) == {"p0_waiting", "p1_waiting", "p2_waiting", "total_waiting"}


def test_zero_tests_are_no_success_in_the_first_versions_words_either(server: Tasking) -> None:
    with server.http() as http:
        made = http.post("/v1/tasks/submit", json={"prompt": "Write a program.", "max_attempts": 1}).json()
        wait_for(lambda: http.get(f"/v1/tasks/{made['task_id']}/status").json()["completed_at"], 60)
        status = http.get(f"/v1/tasks/{made['task_id']}/status").json()
    assert (status["status"], status["result"]["success"]) == ("failed", False)


@pytest.mark.parametrize(("field", "value"), [("priority", "urgent"), ("max_attempts", 1_000_000), ("max_attempts", 0)])
def test_what_the_first_version_let_through_is_refused(idle: Tasking, field: str, value: object) -> None:
    with idle.http() as http:
        reply = http.post("/v1/tasks/submit", json={"prompt": "Write f(x).", field: value})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)


def test_waiting_tasks_are_counted_by_priority(idle: Tasking, idle_people: People) -> None:
    """One's own."""
    store, url = idle.running.deps.store, idle.running.url
    with signed_in(url, store, idle_people.other) as http, signed_in(url, store, idle_people.member) as somebody:
        others = somebody.get("/v1/queue/stats").json()
        before = http.get("/v1/queue/stats").json()
        ids = [
            http.post("/v1/tasks/submit", json={"prompt": "Write f(x).", "priority": name}).json()["task_id"]
            for name in ("p0", "p2")
        ]
        now = http.get("/v1/queue/stats").json()
        assert somebody.get("/v1/queue/stats").json() == others
        for task_id in ids:
            http.post(f"/v1/tasks/{task_id}/cancel")
    grown = {name: now[name] - before[name] for name in now}
    assert grown == {"p0_waiting": 1, "p1_waiting": 0, "p2_waiting": 1, "total_waiting": 2}
