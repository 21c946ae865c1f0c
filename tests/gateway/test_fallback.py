"""Who answers where the model asked for cannot, what is told of it, and what it costs."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from atlas.engine import Upstreams
from atlas.engine.breaker import FAILURES, OPEN_S, Breaker
from atlas.settings import Settings
from atlas.store import Reservation
from tests.engine.peer import DONE, chat, error
from tests.gateway.conftest import MODEL, wait_for
from tests.gateway.metered import Metered, MeteredServer, metered, redis
from tests.gateway.standins import (
    CHATS,
    COMPLETIONS,
    HELLO,
    HI,
    Standing,
    asked,
    fallback_settings,
    whole,
)

__all__ = ["metered", "redis", "whole"]  # fixtures


@pytest.fixture
def standing(whole: Standing) -> Standing:
    whole.reset()
    return whole


def ask(standing: Standing, model: str, *, key: str = "", **body: Any) -> httpx.Response:
    return standing.server.chat(key, model=model, **body)


def newest(server: Metered) -> Any:
    wait_for(lambda: not server.running.deps.store.usage.open_reservations())
    return server.usage[-1]


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]


FAILINGS: dict[str, tuple[int, list[bytes | float]]] = {
    "refuses with 429": (429, error("slow down")),
    "refuses with 500": (500, error("broken")),
    "refuses with 502": (502, [b"<html>bad gateway"]),
    "refuses with 503": (503, error("loading")),
    "refuses with 504": (504, []),
    "ends before it begins": (200, []),
    "ends after a word of life": (200, [chat({"role": "assistant", "content": ""})]),
    "does not speak the language": (200, [b"data: {broken\n\n"]),
    "says that it failed": (200, [b'data: {"error": {"message": "out of memory"}}\n\n']),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failing", FAILINGS)
def test_a_stand_in_that_fails_before_it_begins_is_passed_over(standing: Standing, failing: str, stream: bool) -> None:
    standing.near.replies[CHATS] = FAILINGS[failing]
    reply = ask(standing, "best", stream=stream)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-atlas-model"] == "next/m"
    assert reply.headers["x-atlas-fell-through"].startswith("near/m=")
    answers = events(reply) if stream else [reply.json()]
    assert {answer["model"] for answer in answers} == {"next/m"}
    assert "Hello" in reply.text
    assert len(standing.near.requests) == len(standing.next.requests) == 1
    assert asked(standing.next)[0]["model"] == "m"
    usage = newest(standing.server)
    assert (usage.model, usage.state, usage.prompt_tokens, usage.completion_tokens) == ("next/m", "completed", 9, 4)
    assert usage.cost == 13 * 1000


def test_nobody_listening_is_passed_over_and_the_key_of_the_next_is_sent_to_it_alone(standing: Standing) -> None:
    reply = ask(standing, "gone-first")
    assert reply.json()["model"] == reply.headers["x-atlas-model"] == "near/m"
    assert reply.headers["x-atlas-fell-through"] == "gone/m=engine_unavailable"
    assert standing.near.requests[0][1]["authorization"] == "Bearer sk-near"
    assert newest(standing.server).cost == 9 * 1 + 4 * 2
    ask(standing, "next/m")
    assert "authorization" not in standing.next.requests[0][1]


def test_one_that_hangs_leaves_the_next_its_share_of_the_deadline(standing: Standing) -> None:
    standing.near.replies[CHATS] = (200, [60.0])
    reply = ask(standing, "best")
    assert reply.json()["model"] == "next/m"
    assert 3.0 < reply.elapsed.total_seconds() < 8.0
    wait_for(lambda: standing.near.num_hung_up == 1)


@pytest.mark.parametrize("stream", [False, True])
def test_after_the_first_byte_nobody_else_is_asked_and_the_error_says_so(standing: Standing, stream: bool) -> None:
    standing.near.replies[CHATS] = (200, [chat({"content": "Hel"})])
    reply = ask(standing, "best", stream=stream)
    failure = events(reply)[-1] if stream else reply.json()
    assert failure["error"]["code"] == "upstream_failed"
    assert failure["error"]["message"].endswith("its answer had begun, so no other model was asked")
    assert not standing.next.requests
    usage = newest(standing.server)
    assert (usage.model, usage.state, usage.completion_tokens) == ("near/m", "failed", 1)


def test_a_model_that_is_not_loaded_is_stood_in_for(standing: Standing) -> None:
    reply = ask(standing, "other")
    assert (reply.json()["model"], reply.headers["x-atlas-fell-through"]) == ("near/m", "other=model_not_loaded")


def test_a_model_of_this_machine_stands_in_too(standing: Standing) -> None:
    standing.near.replies[CHATS] = (503, error("loading"))
    reply = ask(standing, "home")
    assert reply.json()["choices"][0]["message"]["content"] == "at home"
    assert reply.json()["model"] == reply.headers["x-atlas-model"] == newest(standing.server).model == MODEL


def test_an_answer_at_home_names_its_model_and_nothing_fell_through(standing: Standing) -> None:
    reply = standing.server.chat()
    assert reply.headers["x-atlas-model"] == MODEL
    assert "x-atlas-fell-through" not in reply.headers


def test_what_is_wrong_with_a_request_is_told_and_not_passed_on(standing: Standing) -> None:
    standing.near.replies[CHATS] = (400, error("no such field", param="temperature"))
    reply = ask(standing, "best")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "temperature")
    assert "x-atlas-model" not in reply.headers
    assert not standing.next.requests


def test_when_all_fail_the_first_reason_leads_and_the_others_follow(standing: Standing) -> None:
    standing.near.replies[CHATS] = (503, error("loading"))
    standing.near.headers = {"retry-after": "7"}
    standing.next.replies[CHATS] = (429, error("too many"))
    standing.next.headers = {"retry-after": "5"}
    reply = ask(standing, "best")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    message = reply.json()["error"]["message"]
    assert message.startswith("upstream 'near' answered 503: loading")
    assert message.endswith("; next/m: upstream 'next' answered 429: too many")
    usage = newest(standing.server)
    assert (usage.state, usage.prompt_tokens, usage.completion_tokens, usage.cost) == ("failed", 0, 0, 0)


def test_a_key_that_does_not_allow_it_never_leaves_and_is_told_how_to(standing: Standing) -> None:
    reply = ask(standing, "elsewhere", key=standing.key())
    assert reply.status_code == 503
    assert reply.json()["error"]["message"].startswith("upstream 'gone' cannot be reached")
    assert "--allow-remote" in reply.json()["error"]["message"]
    direct = ask(standing, "far/m", key=standing.key())
    assert (direct.status_code, direct.json()["error"]["code"]) == (403, "remote_not_allowed")
    assert not standing.far.requests
    allowed = ask(standing, "elsewhere", key=standing.key(allow_remote=True))
    assert allowed.json()["model"] == "far/m"


def test_a_key_held_to_models_does_not_fall_back_to_others(standing: Standing) -> None:
    standing.near.replies[CHATS] = (503, error("loading"))
    reply = ask(standing, "best", key=standing.key(models=("best", "near/m")))
    assert reply.status_code == 503
    assert "may not use model 'next/m'" in reply.json()["error"]["message"]
    assert not standing.next.requests


def test_models_lists_chains_and_who_is_in_them(standing: Standing) -> None:
    with standing.server.http() as http:
        listed = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
        assert {"best", "near/m", "far/m", MODEL} <= set(listed)
        assert listed["near/m"]["owned_by"] == "near"
        assert http.get("/v1/models/near/m").json()["id"] == "near/m"


def test_embeddings_and_token_counts_stay_with_models_of_this_machine(standing: Standing) -> None:
    with standing.server.http() as http:
        for model in ("best", "near/m"):
            reply = http.post("/v1/embeddings", json={"model": model, "input": "x"})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model")
    assert not standing.near.requests


def test_token_ids_go_to_nobody_but_the_model_that_was_named(standing: Standing) -> None:
    with standing.server.http() as http:
        named = http.post("/v1/completions", json={"model": "near/m", "prompt": [1, 2]})
        assert named.json()["model"] == "near/m"
        reply = http.post("/v1/completions", json={"model": "other", "prompt": [1, 2]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "model_not_loaded")
    assert "token ids" in reply.json()["error"]["message"]
    assert len(standing.near.requests) == 1


def test_completions_fall_back_and_stream_in_order(standing: Standing) -> None:
    standing.near.replies[COMPLETIONS] = (503, error("loading"))
    with standing.server.http() as http:
        reply = http.post("/v1/completions", json={"model": "best", "prompt": ["a", "b"], "stream": True})
    assert reply.headers["x-atlas-model"] == "next/m"
    assert {choice["index"] for each in events(reply) for choice in each["choices"]} == {0, 1}
    assert [body["prompt"] for body in asked(standing.next)] == ["a", "b"]


@pytest.mark.parametrize("stream", [False, True])
def test_all_dialects_name_the_model_that_answered(standing: Standing, stream: bool) -> None:
    standing.near.replies[CHATS] = (503, error("loading"))
    with standing.server.http() as http:
        message = http.post("/v1/messages", json={"model": "best", "messages": HI, "max_tokens": 5, "stream": stream})
        response = http.post("/v1/responses", json={"model": "best", "input": "hi", "stream": stream})
    for reply in (message, response):
        assert reply.headers["x-atlas-model"] == "next/m"
        assert '"model":"next/m"' in reply.text.replace(" ", "")
        assert '"best"' not in reply.text


def test_tools_several_answers_and_log_probabilities_pass_through(standing: Standing) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    logprobs = {"content": [{"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": []}]}
    standing.near.replies[CHATS] = (200, [
        chat({"tool_calls": [call]}, logprobs=logprobs), chat({}, finish="tool_calls"),
        chat({"content": "x"}, index=1, logprobs=logprobs), chat({}, index=1, finish="stop"), DONE,
    ])  # fmt: skip
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    choices = ask(standing, "best", n=2, tools=[tool], logprobs=True).json()["choices"]
    assert choices[0]["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert choices[1]["message"]["content"] == "x"
    assert choices[1]["logprobs"]["content"][0]["logprob"] == -0.5
    assert asked(standing.near)[0]["n"] == 2


def test_a_client_that_goes_while_nobody_has_begun_is_noticed(standing: Standing) -> None:
    standing.near.replies[CHATS] = (200, [60.0])
    with standing.server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json={"model": "best", "messages": HI}, timeout=0.5)
    wait_for(lambda: standing.near.num_hung_up == 1)
    assert not standing.next.requests
    assert newest(standing.server).state == "aborted"


def test_an_answer_that_nobody_has_begun_is_ended_from_outside_at_once(standing: Standing) -> None:
    standing.near.replies[CHATS] = (200, [60.0])
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, standing, "best")
        wait_for(lambda: bool(standing.near.requests))
        traffic = standing.server.traffic
        [activity] = standing.server.call(traffic.open)
        assert standing.server.call(lambda: traffic.abort(activity.usage.request_id, actor="somebody"))
        reply = waiting.result(20)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "request_aborted")
    assert not standing.next.requests
    wait_for(lambda: standing.near.num_hung_up == 1)


# -- money --


def held(standing: Standing) -> Reservation | None:
    return next(iter(standing.server.running.deps.store.usage.open_reservations()), None)


def test_the_reservation_is_raised_to_what_the_stand_in_may_cost(standing: Standing) -> None:
    standing.next.replies[CHATS] = (200, [chat({"content": "Hel"}), 60.0])
    with (
        standing.server.http() as http,
        http.stream(
            "POST", "/v1/chat/completions", json={"model": "dear", "messages": HI, "stream": True, "max_tokens": 10}
        ) as reply,
    ):
        assert reply.headers["x-atlas-model"] == "next/m"
        found = held(standing)
        assert found is not None
        assert found.model == "next/m"
        assert found.cost == found.tokens * 1000
    usage = newest(standing.server)
    assert (usage.model, usage.state) == ("next/m", "aborted")
    assert usage.cost <= found.cost


def test_a_stand_in_that_the_budget_does_not_hold_is_passed_over_for_a_cheaper_one(standing: Standing) -> None:
    key = standing.key(cost_per_day=10_000)
    reply = ask(standing, "dear", key=key, max_tokens=10)
    assert reply.json()["model"] == "near/m"
    assert reply.headers["x-atlas-fell-through"] == "gone/m=engine_unavailable, next/m=insufficient_quota"
    assert not standing.next.requests
    assert newest(standing.server).cost == 9 * 1 + 4 * 2


def test_a_budget_that_holds_nobody_is_an_error_before_anybody_is_asked(standing: Standing) -> None:
    key = standing.key(cost_per_day=1)
    reply = ask(standing, "best", key=key)
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "insufficient_quota")
    assert not standing.near.requests
    assert not standing.next.requests


# -- breakers --


def sample(standing: Standing, name: str) -> str:
    with standing.server.http() as http:
        return next(line for line in http.get("/metrics").text.splitlines() if line.startswith(name)).rpartition(" ")[2]


def test_a_server_that_fails_five_times_is_left_alone_and_one_probe_finds_it_well(standing: Standing) -> None:
    clock = [100.0]
    upstream = standing.server.running.deps.upstreams.servers["near"]
    upstream.breaker = Breaker(lambda: clock[0])
    standing.near.replies[CHATS] = (503, error("loading"))
    for _ in range(FAILURES + 2):
        assert ask(standing, "best").json()["model"] == "next/m"
    assert len(standing.near.requests) == FAILURES
    state = 'atlas_upstream_breaker_state{upstream="near"}'
    assert sample(standing, state) == "2.0"
    with standing.server.http() as http:
        ready = http.get("/readyz")
    assert ready.status_code == 200
    assert any("'near' is left alone" in reason for reason in ready.json()["reasons"])
    clock[0] += OPEN_S
    assert ask(standing, "best").json()["model"] == "next/m"
    assert len(standing.near.requests) == FAILURES + 1
    clock[0] += OPEN_S
    standing.near.replies[CHATS] = (200, HELLO)
    assert ask(standing, "best").json()["model"] == "near/m"
    assert sample(standing, state) == "0.0"
    assert ask(standing, "best").json()["model"] == "near/m"


def test_a_server_that_asks_for_time_is_given_it_and_that_is_no_failure(standing: Standing) -> None:
    clock = [100.0]
    upstream = standing.server.running.deps.upstreams.servers["near"]
    upstream.breaker = Breaker(lambda: clock[0])
    standing.near.replies[CHATS], standing.near.headers = (429, error("slow down")), {"retry-after": "9"}
    for _ in range(3):
        assert ask(standing, "best").json()["model"] == "next/m"
    assert (len(standing.near.requests), upstream.breaker.state) == (1, "closed")
    alone = ask(standing, "near/m")
    assert (alone.status_code, alone.headers["retry-after"]) == (503, "9")
    clock[0] += 9
    standing.near.replies[CHATS] = (200, HELLO)
    assert ask(standing, "best").json()["model"] == "near/m"


def test_an_answer_that_breaks_off_counts_against_its_server(standing: Standing) -> None:
    standing.near.replies[CHATS] = (200, [chat({"content": "Hel"})])
    for _ in range(FAILURES):
        assert ask(standing, "best").status_code == 502
    assert ask(standing, "best").json()["model"] == "next/m"


# -- a model of this process --


def test_an_engine_that_is_closed_or_full_is_stood_in_for(standing: Standing, metered: MeteredServer) -> None:
    from tests.gateway.metered import narrow

    fallback = fallback_settings(standing.near, standing.next, standing.far, **{MODEL: ("near/m",)})
    changes = narrow(max_waiting=1)
    changes["settings"] = Settings(queue=changes["queue"], fallback=fallback)
    server = metered(["word " * 200], delay_s=0.01, **changes, upstreams=Upstreams(fallback, {"STANDIN_KEY": "k"}))
    with ExitStack() as stack:
        http = stack.enter_context(server.http())
        body = {"model": MODEL, "messages": HI, "stream": True}
        first = stack.enter_context(http.stream("POST", "/v1/chat/completions", json=body))
        assert first.headers["x-atlas-model"] == MODEL
        threads = stack.enter_context(ThreadPoolExecutor(1))
        waiting = threads.submit(server.chat, max_tokens=1)
        wait_for(lambda: any(each.queue_position for each in server.call(server.traffic.open)))
        assert server.chat().json()["model"] == "near/m"
        first.close()
        assert waiting.result(20).status_code == 200
    asyncio.run_coroutine_threadsafe(server.engine.close(), server.running.loop).result(20)
    reply = server.chat()
    assert (reply.json()["model"], reply.headers["x-atlas-fell-through"]) == ("near/m", f"{MODEL}=engine_unavailable")
