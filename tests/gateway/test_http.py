"""What holds for every route: protocol, limits, health, drain, failures, the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import capture_logs

from atlas.engine import Group, ScriptedEngine
from atlas.errors import EngineFailed, EngineOverloaded
from atlas.gateway import Readiness
from atlas.settings import ServerSettings
from atlas.types import Delta, Prompt
from tests.gateway.conftest import KEY, MODEL, Running, Scripted, deps_of, serving, wait_for

HI = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": HI}
MESSAGES: dict[str, Any] = CHAT | {"max_tokens": 100}
POSTS = [
    "/v1/chat/completions",
    "/v1/chat/completions/input_tokens",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
]
MALFORMED = [
    b"",
    b" ",
    b"{",
    b"}",
    b"null",
    b"true",
    b"7",
    b'"text"',
    b"[]",
    b"[{}]",
    b"{'model': 1}",
    b'{"model": }',
    b'{"model": "scripted",}',
    b'{"model": "scripted"} trailing',
    b'{"model": NaN}',
    b'{"model": "\\ud800"}',
    b'{"model": "\x00"}',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'{"model": "\xff\xfe"}',
    b'{"model": 1, "messages": 2, "prompt": 3, "input": 4, "tokens": 5, "content": 6}',
    b'{"a":' * 20_000,
    b"[" * 100_000,
    b'{"model": ["scripted"]}',
    b"model=scripted",
    b"<model>scripted</model>",
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    settings = ServerSettings(body_limit_bytes=1_000_000)
    with serving(deps_of(ScriptedEngine(["Hello world!"], model=MODEL), server=settings)) as running:
        yield running


def check_error(reply: httpx.Response, path: str) -> dict[str, Any]:
    """The error object, in the dialect of the path."""
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert body["request_id"] == reply.headers["x-request-id"]
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize("path", POSTS)
def test_malformed_bodies_are_answered_with_a_4xx_and_json(server: Running, path: str) -> None:
    with server.http(**{"content-type": "application/json"}) as http:
        for body in MALFORMED:
            reply = http.post(path, content=body)
            assert reply.status_code == 400, (body[:40], reply.text)
            check_error(reply, path)
        assert http.get("/livez").status_code == 200


@pytest.mark.parametrize("path", POSTS)
def test_other_content_types_and_encodings_are_415(server: Running, path: str) -> None:
    with server.http() as http:
        for headers in (
            {"content-type": "text/plain"},
            {"content-type": "application/x-www-form-urlencoded"},
            {"content-type": "multipart/form-data; boundary=x"},
            {},
            {"content-type": "application/json", "content-encoding": "gzip"},
            {"content-type": "application/json", "content-encoding": "br"},
        ):
            reply = http.post(path, content=b"{}", headers=headers)
            assert reply.status_code == 415, headers
            check_error(reply, path)


def test_a_charset_beside_json_is_fine(server: Running) -> None:
    with server.http() as http:
        headers = {"content-type": "application/json; charset=utf-8"}
        assert http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_body_over_the_limit_is_413(server: Running, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(12):
            yield b" " * 100_000

    with server.http(**{"content-type": "application/json"}) as http:
        declared = http.post(path, content=b" " * 1_000_001)
        assert declared.status_code == 413
        check_error(declared, path)
        chunked = http.post(path, content=chunks())
        assert chunked.status_code == 413
        check_error(chunked, path)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_a_wrong_method_is_405_and_names_the_right_ones(server: Running, method: str) -> None:
    for path in POSTS:
        with server.http() as http:
            reply = http.request(method, path)
        assert reply.status_code == 405
        assert "POST" in reply.headers["allow"]
        check_error(reply, path)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat", "/v1/messages/x", "/openapi.json/x", "/docs", "/../etc/passwd", "/%00", "/v1/models/"]
)
def test_unknown_routes_are_404_in_json(server: Running, path: str) -> None:
    with server.http() as http:
        reply = http.get(path)
    if path == "/v1/models/":  # a trailing slash is the same route
        assert reply.status_code == 200
        return
    assert reply.status_code == 404
    check_error(reply, path)


def test_every_reply_has_a_request_id_and_a_plain_one_is_kept(server: Running) -> None:
    with server.http() as http:
        first, second = http.get("/nope"), http.get("/nope")
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        assert http.get("/livez", headers={"x-request-id": "my-id.1"}).headers["x-request-id"] == "my-id.1"
        for bad in ("a b", "x" * 65, "<script>"):
            assert http.get("/livez", headers={"x-request-id": bad}).headers["x-request-id"] != bad


# -- readiness and drain --


def test_health_says_ready(server: Running) -> None:
    assert httpx.get(server.url + "/livez").json() == {"status": "ok"}
    for path in ("/readyz", "/health"):
        reply = httpx.get(server.url + path)
        assert (reply.status_code, reply.json()) == (200, {"status": "ready", "reasons": []})


def test_degraded_still_answers_and_says_why(scripted: Scripted) -> None:
    server = scripted(readiness=lambda: Readiness(status="degraded", reasons=("no GPU",)))
    reply = httpx.get(server.url + "/readyz")
    assert (reply.status_code, reply.json()["reasons"]) == (200, ["no GPU"])


def test_while_loading_answers_are_503_with_retry_after() -> None:
    with serving(deps_of(None, readiness=lambda: Readiness(status="loading"))) as server, server.http() as http:
        assert http.get("/readyz").status_code == 503
        assert http.get("/livez").status_code == 200
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [MODEL, "other"]
        for path, body in (("/v1/chat/completions", CHAT), ("/v1/messages", MESSAGES), ("/tokenize", {"content": "x"})):
            reply = http.post(path, json=body)
            assert reply.status_code == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert int(reply.headers["retry-after-ms"]) >= 1
            check_error(reply, path)


def test_a_drain_refuses_new_requests_and_ends_open_answers(scripted: Scripted) -> None:
    server = scripted(["word " * 500], delay_s=0.05, server=ServerSettings(drain_timeout_s=0.3))
    with (
        server.http() as http,
        http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as chat,
        server.http() as other,
        other.stream("POST", "/v1/messages", json=MESSAGES | {"stream": True}) as message,
    ):
        lines, events = chat.iter_lines(), message.iter_lines()
        assert next(lines).startswith("data: {")
        assert next(events) == "event: message_start"
        server.drain()
        last = [line for line in lines if line][-2:]
        assert json.loads(last[0].removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        assert last[1] == "data: [DONE]"
        assert [line for line in events if line][-2] == "event: error"
        refused = http.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert http.get("/livez").status_code == 200


def test_a_drain_ends_an_answer_that_is_not_streamed_with_503(scripted: Scripted) -> None:
    server = scripted(["word " * 500], delay_s=0.05, server=ServerSettings(drain_timeout_s=0.2))
    server.loop.call_soon_threadsafe(server.loop.call_later, 0.3, server.deps.draining.set)
    with server.http() as http:
        reply = http.post("/v1/chat/completions", json=CHAT)
    assert reply.status_code == 503
    assert "shutting down" in reply.json()["error"]["message"]
    assert int(reply.headers["retry-after"]) >= 1


def test_an_answer_that_ends_in_time_is_not_cut_by_a_drain(scripted: Scripted) -> None:
    server = scripted(["word " * 5], delay_s=0.05, server=ServerSettings(drain_timeout_s=5))
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
        lines = reply.iter_lines()
        next(lines)
        server.drain()
        assert '"finish_reason":"stop"' in [line for line in lines if line][-2]


# -- failures of the engine --


class Overloaded(ScriptedEngine):
    async def submit(self, prompt: Prompt) -> Group:
        raise EngineOverloaded("256 candidates are waiting", retry_after_s=1.5)


class Breaking(ScriptedEngine):
    """Gives a word, then breaks: foreseen, or by a defect."""

    error: Exception = EngineFailed("the context is lost")

    async def submit(self, prompt: Prompt) -> Group:
        group = Group(1, prompt_tokens=1, cancel=lambda _: None)
        group.put([Delta(text="word")])
        asyncio.get_running_loop().call_later(0.05, group.fail, self.error)
        return group


class Defective(Breaking):
    error = RuntimeError("secret detail")


def test_a_full_queue_is_503_with_retry_after() -> None:
    with serving(deps_of(Overloaded(["x"], model=MODEL))) as server, server.http() as http:
        reply = http.post("/v1/chat/completions", json=CHAT)
        assert reply.status_code == 503
        assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("2", "1500")
        assert reply.json()["error"]["code"] == "overloaded"
        assert http.post("/v1/messages", json=MESSAGES).json()["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("engine", [Breaking, Defective])
def test_a_failing_engine_is_a_500_and_in_a_stream_an_error_event(engine: type[Breaking]) -> None:
    with serving(deps_of(engine(["x"], model=MODEL))) as server, server.http() as http:
        whole = http.post("/v1/chat/completions", json=CHAT)
        assert whole.status_code == 500
        assert check_error(whole, "")["code"] == "engine_failed"
        stream = http.post("/v1/chat/completions", json=CHAT | {"stream": True}).text
        assert "word" in stream
        assert json.loads(stream.split("\n\n")[-3].removeprefix("data: "))["error"]["code"] == "engine_failed"
        messages = http.post("/v1/messages", json=MESSAGES | {"stream": True}).text
        assert messages.strip().split("\n\n")[-1].startswith("event: error\n")
        assert "secret" not in whole.text + stream + messages


# -- the log --


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as captured:
        yield captured


def answered(lines: list[Any]) -> Any:
    """The one line of the one request; it is written after the client has its answer."""
    wait_for(lambda: any(line["event"] == "request.answered" for line in lines))
    [line] = [line for line in lines if line["event"] == "request.answered"]
    return line


def test_a_request_is_one_line_with_sizes_and_times_and_no_text(lines: list[Any], scripted: Scripted) -> None:
    server = scripted(["the answer"])
    with server.http() as http:
        http.get("/livez")
        http.post("/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "user", "content": "the prompt"}]})
    line = answered(lines)
    assert (line["path"], line["status"], line["outcome"]) == ("/v1/chat/completions", 200, "completed")
    assert (line["key_id"], line["model"], line["completion_tokens"]) == ("preset", MODEL, 3)
    assert line["request_id"].startswith("req_")
    assert line["ttft_s"] <= line["wall_s"]
    assert not any(secret in str(lines) for secret in (KEY, "the prompt", "the answer"))


def test_a_hostile_path_cannot_forge_a_line(lines: list[Any], server: Running) -> None:
    httpx.get(server.url + "/x%0a2026 forged")
    line = answered(lines)
    assert "\n" not in line["path"]


def test_a_disconnect_is_told_in_the_log(lines: list[Any], scripted: Scripted) -> None:
    server = scripted(["word " * 100], delay_s=0.05)
    with server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=CHAT, timeout=0.2)
    line = answered(lines)
    assert (line["outcome"], line["status"]) == ("disconnected", 499)
