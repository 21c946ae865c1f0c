"""Who has to wait for a place at the engine: told where they stand, let in by turns, charged for nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import wait_for
from tests.gateway.metered import CHAT, STREAM, Metered, MeteredServer, metered, narrow, redis

__all__ = ["metered", "redis"]  # fixtures

WORDS = "word " * 200


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


@contextmanager
def talking(server: Metered) -> Iterator[httpx.Response]:
    """A stream that has begun, and takes the only slot until it ends or is closed."""
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=STREAM) as reply:
        lines = reply.iter_lines()  # kept: httpx closes a stream whose iterator is gone
        next(lines)
        yield reply


def test_a_queued_stream_hears_its_position_and_then_its_answer(metered: MeteredServer) -> None:
    server = metered([WORDS], delay_s=0.01, **narrow())
    body = STREAM | {"max_tokens": 5}
    with talking(server) as first, server.http() as http, http.stream("POST", "/v1/messages", json=body) as second:
        lines = second.iter_lines()
        assert next(lines) == ": queued position=1"
        [_, waiting] = server.call(server.traffic.open)
        assert (waiting.usage.state, waiting.queue_position) == ("queued", 1)
        first.close()
        assert "event: message_stop" in list(lines)
    assert [usage.state for usage in server.wait_for_rows(2)] == ["aborted", "completed"]
    assert server.usage[1].queue_s > 0


def test_a_queued_answer_says_how_long_it_has_waited(metered: MeteredServer) -> None:
    server = metered(["word " * 20], delay_s=0.01, **narrow())
    with ThreadPoolExecutor(3) as threads:
        replies = list(threads.map(lambda _: server.chat(), range(3)))
    waits = sorted(int(reply.headers["x-atlas-queue-ms"]) for reply in replies)
    assert waits[0] == 0
    assert 100 < waits[1] < waits[2]
    assert server.running.deps.traffic.rates().running == 0


def test_streams_come_before_whole_answers_and_a_client_may_step_back(metered: MeteredServer) -> None:
    server = metered([WORDS], delay_s=0.01, **narrow())
    with talking(server) as running, ThreadPoolExecutor(3) as threads:
        whole = threads.submit(server.chat, max_tokens=1)
        wait_for(lambda: len(server.call(server.traffic.open)) == 2)
        modest = threads.submit(_post, server, STREAM | {"max_tokens": 1}, {"x-atlas-priority": "p2"})
        wait_for(lambda: len(server.call(server.traffic.open)) == 3)
        stream = threads.submit(server.chat, stream=True, max_tokens=1)
        wait_for(lambda: len(server.call(server.traffic.open)) == 4)
        assert [(each.priority, each.queue_position) for each in server.call(server.traffic.open)] == [
            (0, 0), (1, 2), (2, 3), (0, 1),
        ]  # fmt: skip
        assert server.call(server.traffic.rates).waiting == (1, 1, 1)
        running.close()
        for reply in (whole, modest, stream):
            assert reply.result(20).status_code == 200


def _post(server: Metered, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
    with server.http(**headers) as http:
        return http.post("/v1/chat/completions", json=body)


def test_a_priority_that_is_none_is_refused(metered: MeteredServer) -> None:
    server = metered()
    assert _post(server, CHAT, {"x-atlas-priority": "urgent"}).status_code == 400


def test_a_full_queue_is_503_and_costs_nothing(metered: MeteredServer) -> None:
    server = metered([WORDS], delay_s=0.01, **narrow(max_waiting=1))
    key = server.key(requests_per_minute=100)
    with talking(server) as running, ThreadPoolExecutor(1) as threads:
        queued = threads.submit(server.chat, max_tokens=1)
        wait_for(lambda: len(server.call(server.traffic.open)) == 2)
        refused = server.chat(key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        running.close()
        assert queued.result(20).status_code == 200
    assert server.chat(key, max_tokens=1).headers["x-ratelimit-remaining-requests"] == "99"
    assert len(server.wait_for_rows(3)) == 3


@pytest.mark.parametrize("is_streamed", [False, True])
def test_who_waits_too_long_gets_503_and_a_failed_row_without_tokens(metered: MeteredServer, is_streamed: bool) -> None:
    server = metered([WORDS], delay_s=0.05, **narrow(timeout_s=0.2))
    with talking(server):
        refused = server.chat(stream=is_streamed)
        if is_streamed:
            assert list(events(iter(refused.text.splitlines())))[-1]["error"]["code"] == "overloaded"
        else:
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
    rows = {usage.state: usage for usage in server.wait_for_rows(2)}
    assert (rows["failed"].prompt_tokens, rows["failed"].completion_tokens) == (0, 0)
    assert rows["failed"].queue_s == 0 < rows["aborted"].completion_tokens


@pytest.mark.parametrize("how", ["disconnect", "abort"])
def test_a_request_that_leaves_the_queue_frees_its_place(metered: MeteredServer, how: str) -> None:
    server = metered([WORDS], delay_s=0.01, **narrow())
    with talking(server):
        with server.http() as other, other.stream("POST", "/v1/chat/completions", json=STREAM) as queued:
            lines = queued.iter_lines()
            next(lines)
            [_, waiting] = server.call(server.traffic.open)
            if how == "abort":
                server.call(lambda: server.traffic.abort(waiting.usage.request_id, actor="usr_admin"))
                assert list(events(lines))[-1]["error"]["code"] == "request_aborted"
        wait_for(lambda: len(server.call(server.traffic.open)) == 1)
        assert server.call(server.traffic.rates).waiting == (0, 0, 0)
    rows = server.wait_for_rows(2)
    assert [(usage.state, usage.completion_tokens == 0) for usage in rows if usage.request_id == waiting.usage.request_id] == [
        ("aborted", True)
    ]


def test_candidates_that_end_make_room_for_others(metered: MeteredServer) -> None:
    server = metered(["one", WORDS], delay_s=0.01, **narrow(2))
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=STREAM | {"n": 2, "seed": 0}) as wide:
        lines = wide.iter_lines()
        wait_for(lambda: '"finish_reason":"stop"' in next(lines))
        assert int(server.chat(seed=0).headers["x-atlas-queue-ms"]) < 1000
        assert len(server.call(server.traffic.open)) == 1
