"""Models, embeddings, tokens, metrics."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from atlas.engine import ScriptedEngine
from tests.gateway.conftest import MODEL, Running, deps_of, serving

ROOT = Path(__file__).parents[2]
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(["Hello world!"], model=MODEL))) as running:
        yield running


def post(server: Running, path: str, body: dict[str, Any]) -> httpx.Response:
    with server.http() as http:
        return http.post(path, json=body)


# -- models --


def test_models_are_listed_the_loaded_one_with_its_context(server: Running) -> None:
    models = server.openai().models.list().data
    assert [model.id for model in models] == [MODEL, "other"]
    extra = models[0].model_extra
    assert extra is not None
    assert extra["is_loaded"]
    assert extra["max_model_len"] == extra["context_length"] == extra["meta"]["n_ctx"] == 4096
    assert models[1].model_extra is not None
    assert not models[1].model_extra["is_loaded"]
    assert models[1].model_extra["context_length"] == 32768


def test_one_model_is_described_and_an_unknown_one_is_404_listing_all(server: Running) -> None:
    assert server.openai().models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai().models.retrieve("org/gone")
    assert "'org/gone'" in str(caught.value)
    assert "scripted, other" in str(caught.value)


@pytest.mark.parametrize("model", ["gone", "atlas", "", "claude-x"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_an_unknown_model_is_404_and_lists_those_there_are(server: Running, path: str, model: str) -> None:
    reply = post(server, path, {"model": model, "messages": HI, "prompt": "x", "input": "x"})
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found"
    assert "scripted, other" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_a_registered_model_that_is_not_loaded_is_409_and_not_to_be_retried(server: Running, path: str) -> None:
    reply = post(server, path, {"model": "other", "messages": HI, "prompt": "x", "input": "x"})
    assert reply.status_code == 409
    assert reply.headers["x-should-retry"] == "false"
    assert "--model other" in reply.json()["error"]["message"]


# -- embeddings --


def test_embeddings_come_as_floats_and_as_base64_of_the_same(server: Running) -> None:
    body = {"model": MODEL, "input": ["one", "two words"]}
    floats = post(server, "/v1/embeddings", body).json()
    packed = post(server, "/v1/embeddings", body | {"encoding_format": "base64"}).json()
    for plain, dense in zip(floats["data"], packed["data"], strict=True):
        vector = struct.unpack("<64f", base64.b64decode(dense["embedding"]))
        assert vector == pytest.approx(plain["embedding"], abs=1e-6)
    assert [item["index"] for item in floats["data"]] == [0, 1]
    assert floats["usage"]["prompt_tokens"] == floats["usage"]["total_tokens"] == len("onetwo words")


def test_the_openai_client_reads_its_default_format(server: Running) -> None:
    reply = server.openai().embeddings.create(model=MODEL, input="one", dimensions=64)
    assert len(reply.data[0].embedding) == 64
    assert sum(value * value for value in reply.data[0].embedding) == pytest.approx(1)


def test_token_inputs_embed_like_their_text(server: Running) -> None:
    client = server.openai()
    text = client.embeddings.create(model=MODEL, input="hi").data[0].embedding
    assert client.embeddings.create(model=MODEL, input=[104, 105]).data[0].embedding == text
    assert client.embeddings.create(model=MODEL, input=[[104, 105], [104]]).data[0].embedding == text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 32}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a" * 5000}, "input"),
    ],
)
def test_wrong_inputs_are_named(server: Running, body: dict[str, Any], param: str) -> None:
    reply = post(server, "/v1/embeddings", {"model": MODEL} | body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


# -- tokens --


@pytest.mark.parametrize("body", [{"content": "hé"}, {"prompt": "hé", "model": MODEL}])
def test_text_goes_to_tokens_and_back(server: Running, body: dict[str, Any]) -> None:
    cut = post(server, "/tokenize", body).json()
    assert cut == {"tokens": list("hé".encode()), "count": 3, "max_model_len": 4096}
    assert post(server, "/detokenize", {"tokens": cut["tokens"]}).json() == {"content": "hé", "prompt": "hé"}


def test_tokens_are_told_with_their_pieces_and_parts_of_characters_as_bytes(server: Running) -> None:
    cut = post(server, "/tokenize", {"content": "hé", "with_pieces": True}).json()
    assert cut["tokens"] == [{"id": 104, "piece": "h"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]
    assert cut["count"] == 3


def test_control_tokens_are_parsed_unless_switched_off(server: Running) -> None:
    assert post(server, "/tokenize", {"content": "<|im_end|>"}).json()["count"] == 1
    assert post(server, "/tokenize", {"content": "<|im_end|>", "parse_special": False}).json()["count"] == 10


def test_ids_outside_the_vocabulary_are_refused(server: Running) -> None:
    for token in (-1, 10**9, 10**30):
        assert post(server, "/detokenize", {"tokens": [token]}).status_code == 400


def test_a_conversation_is_counted_without_generating(server: Running) -> None:
    before = len(server.engine.prompts)
    counted = post(server, "/v1/chat/completions/input_tokens", {"model": MODEL, "messages": HI}).json()
    assert len(server.engine.prompts) == before
    used = post(server, "/v1/chat/completions", {"model": MODEL, "messages": HI}).json()["usage"]
    assert counted["input_tokens"] == used["prompt_tokens"]


# -- metrics --


def sample(server: Running, name: str, **labels: str) -> float:
    """The value of a sample; 0 if it does not exist yet."""
    with server.http() as http:
        text = http.get("/metrics").text
    samples = [found for family in text_string_to_metric_families(text) for found in family.samples]
    return sum(found.value for found in samples if found.name == name and labels.items() <= found.labels.items())


def test_metrics_count_requests_tokens_and_times(server: Running) -> None:
    def counts() -> list[float]:
        return [
            sample(server, "atlas_http_requests_total", route="/v1/chat/completions", method="POST", code="200"),
            sample(server, "atlas_tokens_total", model=MODEL, type="completion"),
            sample(server, "atlas_ttft_seconds_count", model=MODEL),
            sample(server, "atlas_request_seconds_count", model=MODEL, finish="completed"),
        ]

    before = counts()
    assert post(server, "/v1/chat/completions", {"model": MODEL, "messages": HI, "n": 2}).status_code == 200
    assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [1, 6, 2, 1]


def test_metrics_tell_what_the_engine_does(server: Running) -> None:
    assert sample(server, "atlas_requests_running", model=MODEL) == 0
    assert sample(server, "atlas_engine_generated_tokens_total", model=MODEL) == server.engine.stats().generated_tokens


def test_metrics_tell_of_queue_limits_and_ledger(server: Running) -> None:
    before = sample(server, "atlas_usage_rows_total", state="completed")
    post(server, "/v1/chat/completions", {"model": MODEL, "messages": HI})
    assert sample(server, "atlas_usage_rows_total", state="completed") == before + 1
    assert sample(server, "atlas_queue_slots", state="total") == 32
    assert sample(server, "atlas_queue_waiting") == sample(server, "atlas_queue_running") == 0
    assert sample(server, "atlas_usage_late") == sample(server, "atlas_budget_refusals_total") == 0
    assert sample(server, "atlas_limits_up") == 1
    assert sample(server, "process_resident_memory_bytes") > 0


def test_the_grafana_board_shows_metrics_that_exist(server: Running) -> None:
    post(server, "/v1/chat/completions", {"model": MODEL, "messages": HI})
    post(server, "/v1/chat/completions", {"model": "gone", "messages": HI})
    board = json.loads((ROOT / "deploy/grafana/atlas.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    named = {name for text in expressions for name in re.findall(r"\b(?:atlas|process)_\w+", text)}
    with server.http() as http:
        families = list(text_string_to_metric_families(http.get("/metrics").text))
    exist = {found.name for family in families for found in family.samples}
    assert len(expressions) > 30
    assert named <= exist
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_routes_methods_and_paths_from_outside_make_no_new_series(server: Running) -> None:
    with server.http() as http:
        for i in range(5):
            http.get(f"/x{i}")
            http.request(f"BREW{i}", "/v1/models")
            http.get(f"/v1/models/x{i}")
        text = http.get("/metrics").text
    assert "/x" not in text
    assert "BREW" not in text
    assert 'route="/v1/models/{model_id}"' in text


def test_metrics_answer_while_no_model_is_loaded() -> None:
    with serving(deps_of(None)) as server, server.http() as http:
        reply = http.get("/metrics")
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/plain")
