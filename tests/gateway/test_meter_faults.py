"""Redis or the ledger away, at any moment: nothing is let through uncounted, nobody is told that all is well, and it passes."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import capture_logs

from atlas.log import RecentLines, redact
from tests.gateway.conftest import MODEL, wait_for
from tests.gateway.metered import CHAT, STREAM, Metered, MeteredServer, metered, narrow, redis
from tests.ledgers import locked
from tests.store.live.conftest import Server

__all__ = ["metered", "redis"]  # fixtures

WORDS = "word " * 200


def errors_of(text: str) -> list[str]:
    found = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    return [event["error"]["code"] for event in found if "error" in event]


def patient(server: Metered, **body: Any) -> httpx.Response:
    with server.http() as http:
        return http.post("/v1/chat/completions", json=CHAT | body, timeout=60)


# -- Redis --


@contextmanager
def stopped(redis: Server) -> Iterator[None]:
    redis.kill()
    try:
        yield
    finally:
        redis.start()


def test_without_redis_metered_routes_are_503_the_others_live_and_it_passes(metered: MeteredServer, redis: Server) -> None:
    server = metered()
    assert server.chat().status_code == 200
    with stopped(redis), server.http() as http:
        for path, body in (("/v1/chat/completions", CHAT), ("/v1/embeddings", {"model": MODEL, "input": "x"})):
            refused = http.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "limits_unavailable")
            assert int(refused.headers["retry-after"]) >= 1
        assert http.get("/livez").status_code == 200
        assert http.get("/v1/models").status_code == 200
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
        assert "Redis" in ready.json()["reasons"][0]
    wait_for(lambda: server.chat().status_code == 200)
    assert httpx.get(server.running.url + "/readyz").status_code == 200
    assert [usage.state for usage in server.usage] == ["completed"] * 2


def test_a_redis_that_hangs_holds_up_nobody_else(metered: MeteredServer, redis: Server) -> None:
    """Only those who have to be counted wait for it: nobody waits in the event loop."""
    server = metered()
    assert server.chat().status_code == 200
    assert redis.process is not None
    redis.process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool, server.http() as http:
            refused = pool.submit(server.chat)
            waits_s = []
            while not refused.done():
                start_s = time.monotonic()
                assert http.get("/livez").status_code == 200
                waits_s.append(time.monotonic() - start_s)
            assert refused.result().status_code == 503
    finally:
        redis.process.send_signal(signal.SIGCONT)
    assert len(waits_s) > 10
    assert median(waits_s) < 0.8
    wait_for(lambda: server.chat().status_code == 200)


def test_an_answer_outlives_redis_and_budgets_are_right_afterwards(metered: MeteredServer, redis: Server) -> None:
    server = metered(["word " * 60], delay_s=0.02)
    used = patient(server, max_tokens=40).json()["usage"]["total_tokens"]
    key = server.key(tokens_per_day=used + 10, concurrency=1)
    with server.http(key) as http, http.stream("POST", "/v1/chat/completions", json=STREAM | {"max_tokens": 40}) as reply:
        lines = reply.iter_lines()
        next(lines)
        with stopped(redis):
            assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.usage[-1].state == "completed"
    wait_for(lambda: server.chat(key, max_tokens=40).status_code == 429)
    assert server.chat(key, max_tokens=40).json()["error"]["code"] == "insufficient_quota"


def test_an_extension_waits_for_a_redis_that_comes_back(metered: MeteredServer, redis: Server) -> None:
    server = metered(["word " * 100], slice_tokens=16, delay_s=0.005)
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=STREAM, timeout=60) as reply:
        lines = reply.iter_lines()
        next(lines)
        redis.kill()
        back = threading.Timer(1.0, redis.start)
        back.start()
        text = "\n".join(lines)
        back.join()
    assert '"finish_reason":"stop"' in text
    assert server.one_usage.completion_tokens == 102


def test_an_extension_that_waits_too_long_ends_the_answer_and_says_why(
    metered: MeteredServer, redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas.gateway.charge.EXTEND_PATIENCE_S", 0.5)
    server = metered([WORDS], slice_tokens=16, delay_s=0.01)
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=STREAM, timeout=60) as reply:
        lines = reply.iter_lines()
        next(lines)
        with stopped(redis):
            text = "\n".join(lines)
    assert '"length_reason":"limits_unavailable"' in text
    assert (server.one_usage.state, server.one_usage.finish) == ("completed", "length")


# -- the ledger --


@pytest.fixture
def in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that the test can hold up, whatever other tests are told to use."""
    monkeypatch.setattr("tests.ledgers.SERVER_URL", "")


@pytest.mark.usefixtures("in_a_file")
def test_without_the_ledger_nothing_begins_and_it_passes(metered: MeteredServer) -> None:
    server = metered()
    key = server.key(requests_per_minute=100, concurrency=1)
    with locked(server.path):
        with server.http() as http:
            ready = http.get("/readyz", timeout=60)
            assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
            assert "ledger" in ready.json()["reasons"][0]
        with server.http(key) as http:
            refused = http.post("/v1/chat/completions", json=CHAT, timeout=60)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ledger_unavailable")
            assert int(refused.headers["retry-after"]) >= 1
        assert server.engine.prompts == []
    assert server.chat(key).status_code == 200
    assert len(server.usage) == 1
    assert [each.usage.state for each in server.call(server.traffic.recent)][-1] == "refused"


@pytest.mark.usefixtures("in_a_file")
@pytest.mark.parametrize("is_streamed", [True, False])
def test_an_answer_that_cannot_be_settled_is_an_error_and_its_row_comes_later(metered: MeteredServer, is_streamed: bool) -> None:
    server = metered(["word " * 20], delay_s=0.05)
    replies: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: replies.append(patient(server, stream=is_streamed)))
    asking.start()
    wait_for(lambda: bool(server.engine.prompts))
    with locked(server.path):
        asking.join(60)
    [reply] = replies
    if is_streamed:
        assert errors_of(reply.text) == ["ledger_unavailable"]
        assert '"finish_reason":"stop"' not in reply.text
    else:
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "ledger_unavailable")
    [usage] = server.wait_for_rows()
    assert (usage.state, usage.finish, usage.completion_tokens) == ("failed", "ledger_unavailable", 22)
    assert server.chat(server.key(concurrency=1)).status_code == 200


@pytest.mark.usefixtures("in_a_file")
def test_what_is_late_is_written_before_the_server_ends(metered: MeteredServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.gateway.charge.RETRY_INTERVAL_S", 1000.0)
    server = metered(["word " * 20], delay_s=0.05)
    asking = threading.Thread(target=patient, args=(server,))
    asking.start()
    wait_for(lambda: bool(server.engine.prompts))
    with locked(server.path):
        asking.join(60)
    assert server.usage == []
    server.close()  # the lifespan ends; the ledger is open still
    assert [usage.state for usage in server.usage] == ["failed"]


# -- the log --

CANARIES = {name: f"canary{name}9f3a" for name in ("user", "system", "tool", "schema", "stop", "answer", "key", "call", "extra")}


def test_no_text_or_secret_of_a_request_is_logged(metered: MeteredServer) -> None:
    recent = RecentLines()
    with capture_logs(processors=[structlog.contextvars.merge_contextvars, redact, recent.keep]) as lines:
        server = metered([CANARIES["answer"] + " words"])
        _ask_for_trouble(server)
        wait_for(lambda: sum(line["event"] == "request.answered" for line in lines) >= 10)
    said = repr(lines) + repr(recent.lines()) + repr(server.call(server.traffic.recent))
    leaked = [name for name, canary in CANARIES.items() if canary in said]
    assert leaked == []
    assert {"request_id", "owner", "key_id", "model", "state", "prompt_tokens", "completion_tokens", "queue_ms", "wall_s"} <= set(
        next(line for line in lines if line.get("state") == "completed")
    )


def _ask_for_trouble(server: Metered) -> None:
    """Requests that succeed, are refused, and fail, with canaries wherever text can be."""
    tool = {
        "type": "function",
        "function": {"name": "f", "description": CANARIES["tool"], "parameters": {"d": CANARIES["schema"]}},
    }
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": CANARIES["call"]})}}
    messages = [
        {"role": "system", "content": CANARIES["system"]},
        {"role": "user", "content": CANARIES["user"]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": CANARIES["call"]},
    ]
    body = {
        "model": MODEL,
        "messages": messages,
        "tools": [tool],
        "stop": [CANARIES["stop"]],
        "metadata": {"a": CANARIES["extra"]},
    }
    with server.http() as http:
        http.post("/v1/chat/completions", json=body)
        http.post("/v1/chat/completions", json=body | {"stream": True})
        http.post("/v1/chat/completions", json=body | {"tools": [CANARIES["tool"]]})
        http.post("/v1/chat/completions", json=body | {"model": CANARIES["extra"]})
        http.post("/v1/chat/completions", content=json.dumps(body)[:-1], headers={"content-type": "application/json"})
        http.post("/v1/messages", json={"model": MODEL, "max_tokens": 9, "system": CANARIES["system"], "messages": messages[1:2]})
        http.post("/v1/responses", json={"model": MODEL, "input": CANARIES["user"], "instructions": CANARIES["system"]})
        http.post("/v1/completions", json={"model": MODEL, "prompt": CANARIES["user"], "suffix": CANARIES["call"]})
        http.post("/v1/embeddings", json={"model": MODEL, "input": CANARIES["user"]})
        http.get("/v1/models", headers={"authorization": f"Bearer {CANARIES['key']}"})
        http.post("/api/auth/login", json={"username": CANARIES["user"], "password": CANARIES["key"]})


@pytest.mark.usefixtures("in_a_file")
def test_a_slot_is_free_again_after_a_failure_at_the_ledger(metered: MeteredServer) -> None:
    server = metered(**narrow())
    with locked(server.path):
        assert patient(server).status_code == 503
    assert server.chat().status_code == 200
    wait_for(lambda: server.call(server.traffic.rates).running == 0)
