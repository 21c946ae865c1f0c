"""Reranking by embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from atlas.engine import ScriptedEngine
from tests.gateway.conftest import MODEL, Running, deps_of, serving

DOCUMENTS = ["zebra", "the query", "another"]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(["Hello world!"], model=MODEL))) as running:
        yield running


def rerank(server: Running, **body: Any) -> httpx.Response:
    with server.http() as http:
        return http.post("/v1/rerank", json={"model": MODEL, "query": "the query", "documents": DOCUMENTS} | body)


def test_the_nearest_document_comes_first_with_its_place_in_the_request(server: Running) -> None:
    reply = rerank(server).json()
    scores = [result["relevance_score"] for result in reply["results"]]
    assert reply["results"][0] == {"index": 1, "relevance_score": pytest.approx(1)}
    assert sorted(result["index"] for result in reply["results"]) == [0, 1, 2]
    assert scores == sorted(scores, reverse=True)
    assert all(-1 <= score <= 1 for score in scores)


def test_the_scores_are_the_cosines_of_the_embeddings_and_say_so(server: Running) -> None:
    vectors = [item.embedding for item in server.openai().embeddings.create(model=MODEL, input=["the query", *DOCUMENTS]).data]
    reply = rerank(server).json()
    for result in reply["results"]:
        product = sum(a * b for a, b in zip(vectors[0], vectors[1 + result["index"]], strict=True))
        assert result["relevance_score"] == pytest.approx(product, abs=1e-6)
    assert (reply["method"], reply["model"], reply["object"]) == ("embedding_cosine", MODEL, "list")
    assert reply["usage"] == {"prompt_tokens": len("the query" + "".join(DOCUMENTS)), "total_tokens": 30}


@pytest.mark.parametrize(("top_n", "length"), [(None, 3), (1, 1), (3, 3), (99, 3)])
def test_top_n_bounds_the_results(server: Running, top_n: int | None, length: int) -> None:
    results = rerank(server, top_n=top_n).json()["results"]
    assert len(results) == length
    assert results[0]["index"] == 1


def test_documents_are_texts_or_objects_and_come_back_on_demand(server: Running) -> None:
    documents = [{"text": "zebra", "id": 7}, "the query"]
    results = rerank(server, documents=documents, return_documents=True).json()["results"]
    assert [result["document"] for result in results] == [{"text": "the query"}, {"text": "zebra"}]
    assert "document" not in rerank(server, documents=documents).json()["results"][0]


def test_equally_near_documents_keep_their_order(server: Running) -> None:
    results = rerank(server, documents=["zebra", "the query"] * 3).json()["results"]
    assert [result["index"] for result in results] == [1, 3, 5, 0, 2, 4]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": None}, "documents"),
        ({"documents": ["x"] * 1001}, "documents"),
        ({"documents": ["x", ""]}, "documents[1]"),
        ({"documents": ["x", 3]}, "documents[1]"),
        ({"documents": ["x", "a" * 5000]}, "documents"),
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"top_n": 0}, "top_n"),
    ],
)
def test_wrong_requests_are_refused_by_name(server: Running, body: dict[str, Any], param: str) -> None:
    reply = rerank(server, **body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


@pytest.mark.parametrize(("model", "status"), [("gone", 404), ("other", 409)])
def test_the_model_has_to_be_the_one_that_is_loaded(server: Running, model: str, status: int) -> None:
    assert rerank(server, model=model).status_code == status
