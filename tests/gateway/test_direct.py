"""The short way to the handlers says what the framework's says; a body of unknown length takes the framework's."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from atlas.settings import ServerSettings
from tests.gateway.conftest import KEY, MODEL, Running, Scripted

CHAT = b'{"model": "%b", "messages": [{"role": "user", "content": "hi"}]}' % MODEL.encode()
PATHS = ["/v1/chat/completions", "/v1/messages", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank"]


@pytest.fixture
def server(scripted: Scripted) -> Running:
    return scripted(server=ServerSettings(body_limit_bytes=4096, cors_origins=("https://app.test",)))


def both_ways(server: Running, path: str, body: bytes, **headers: str) -> list[httpx.Response]:
    def pieces() -> Iterator[bytes]:
        yield body

    with server.http(**{"content-type": "application/json"} | headers) as http:
        return [http.post(path, content=content) for content in (body, pieces())]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"{}", b"[]", b"null", b"{", b'{"model": 1}', b'{"model": "\xff"}', b"[" * 3000, b'{"model": "x", "messages": "hi"}',
        b'{"model": "%b", "messages": [{"role": "robot"}], "input": {}, "prompt": {}}' % MODEL.encode(), b" " * 5000,
    ],
)  # fmt: skip
def test_a_wrong_body_is_answered_alike(server: Running, path: str, body: bytes) -> None:
    direct, framework = both_ways(server, path, body)
    assert direct.status_code == framework.status_code
    assert direct.status_code in (400, 413)
    told, expected = direct.json(), framework.json()
    for reply in (told, expected):
        reply.pop("request_id", None)
    assert told == expected


@pytest.mark.parametrize("headers", [{"authorization": "Bearer wrong"}, {"x-api-key": "another"}, {"content-type": "text/plain"}])
def test_who_is_refused_is_refused_alike(server: Running, headers: dict[str, str]) -> None:
    direct, framework = both_ways(server, "/v1/chat/completions", CHAT, **headers)
    assert direct.status_code == framework.status_code
    assert direct.json() == framework.json()


def test_a_right_body_is_answered_alike(server: Running) -> None:
    direct, framework = both_ways(server, "/v1/chat/completions", CHAT)
    assert (direct.status_code, framework.status_code) == (200, 200)
    assert set(direct.headers) == set(framework.headers)
    assert direct.json()["choices"] == framework.json()["choices"]


def test_what_the_framework_would_coerce_is_coerced(server: Running) -> None:
    body = CHAT.replace(b"]}", b'], "max_tokens": "1", "stream": "false"}')
    for reply in both_ways(server, "/v1/chat/completions", body):
        assert (reply.status_code, reply.json()["usage"]["completion_tokens"]) == (200, 1)


def test_a_page_of_a_listed_site_may_read_the_answer(server: Running) -> None:
    with server.http(origin="https://app.test") as http:
        reply = http.post("/v1/chat/completions", content=CHAT, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, "https://app.test")


def test_an_empty_body_and_other_methods_are_the_frameworks(server: Running) -> None:
    with server.http() as http:
        assert http.post("/v1/chat/completions").status_code == 400
        assert http.get("/v1/chat/completions").status_code == 405
        assert http.post("/v1/chat/completions/", json={}, headers={"authorization": f"Bearer {KEY}"}).status_code == 400
