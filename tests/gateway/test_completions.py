from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from atlas.engine import ScriptedEngine
from tests.gateway.conftest import MODEL, Running, Scripted, deps_of, serving, wait_for

BODY: dict[str, Any] = {"model": MODEL, "prompt": "def f():"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(["return one", "return two"], model=MODEL))) as running:
        yield running


def post(server: Running, **body: object) -> httpx.Response:
    with server.http() as http:
        return http.post("/v1/completions", json=BODY | body)


def events_of(server: Running, **body: object) -> list[dict[str, Any]]:
    blocks = post(server, stream=True, **body).text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def test_a_completion_has_text_finish_reason_and_usage(server: Running) -> None:
    reply = server.openai().completions.create(model=MODEL, prompt="def f():", seed=0)
    assert reply.object == "text_completion"
    assert reply.choices[0].text == "return one"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len("def f():")
    assert server.engine.prompts[-1].text == "def f():"


def test_a_stream_says_the_same(server: Running) -> None:
    chunks = list(server.openai().completions.create(model=MODEL, prompt="x", seed=1, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "return two"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_several_prompts_times_n_are_numbered_in_order(server: Running) -> None:
    whole = post(server, prompt=["a", "b"], n=2, seed=0, echo=True).json()
    texts = [choice["text"] for choice in whole["choices"]]
    assert texts == ["areturn one", "areturn two", "breturn one", "breturn two"]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    streamed = dict.fromkeys(range(4), "")
    for event in events_of(server, prompt=["a", "b"], n=2, seed=0, echo=True):
        streamed[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert list(streamed.values()) == texts


def test_usage_of_a_stream_comes_last_and_covers_all_prompts(server: Running) -> None:
    *others, last = events_of(server, prompt=["a", "b"], stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 2
    assert last["usage"]["completion_tokens"] == 6
    assert all(event["usage"] is None for event in others)


@pytest.mark.parametrize(("prompt", "expected"), [([104, 105], [(104, 105)]), ([[104], [105]], [(104,), (105,)])])
def test_prompts_of_tokens_reach_the_engine_and_are_echoed_as_text(server: Running, prompt: object, expected: object) -> None:
    before = len(server.engine.prompts)
    reply = post(server, prompt=prompt, echo=True)
    assert [sent.tokens for sent in server.engine.prompts[before:]] == expected
    assert reply.json()["choices"][0]["text"].startswith("h")


def test_a_suffix_makes_it_fill_in_the_middle(server: Running) -> None:
    assert post(server, suffix="\n\nprint(f())").status_code == 200
    assert server.engine.prompts[-1].suffix == "\n\nprint(f())"


def test_logprobs_are_parallel_lists_and_offsets_count_characters(server: Running) -> None:
    logprobs = post(server, logprobs=2, seed=0).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["return", " one"]
    assert logprobs["text_offset"] == [0, 6]
    assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 2
    pieces = [event["choices"][0]["logprobs"] for event in events_of(server, logprobs=2, seed=0)]
    assert [offset for piece in pieces if piece for offset in piece["text_offset"]] == [0, 6]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": [1], "suffix": "x"}, "suffix"),
        ({"prompt": [10**9]}, "tokens"),
        ({"prompt": [-1]}, "tokens"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": "x" * 5000}, "prompt"),
    ],
)
def test_wrong_values_are_named_in_the_error(server: Running, body: dict[str, object], param: str) -> None:
    reply = post(server, **body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_closing_a_stream_stops_every_prompt_of_it(scripted: Scripted) -> None:
    server = scripted(["word " * 200], delay_s=0.05)
    body = BODY | {"prompt": ["a", "b", "c"], "stream": True}
    with server.http() as http, http.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert server.engine.stats().num_running == 3
    assert wait_for(lambda: server.engine.stats().num_running == 0) < 0.2
