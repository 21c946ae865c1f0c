"""POST /v1/rerank: documents in the order of their nearness to a query, by the embedding model's vectors.

There is no cross-encoder here, which would read query and document together; the answer says so in `method`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from litestar import post
from litestar.params import JSONBody

from atlas.errors import BadRequest, ContextLengthExceeded
from atlas.gateway import text_wire
from atlas.gateway.exchange import HTTPRequest, exchange_of
from atlas.gateway.models import choose_embedder
from atlas.gateway.openapi import replies
from atlas.gateway.tariff import most_input_tokens


@post(
    "/v1/rerank",
    status_code=200,
    opt={"access": "embeddings"},
    tags=["embeddings"],
    summary="Order documents by their nearness to a query",
    responses=replies(text_wire.RerankReply),
)
async def rerank(request: HTTPRequest, data: JSONBody[text_wire.RerankRequest]) -> text_wire.RerankReply:
    exchange = exchange_of(request)
    engine = choose_embedder(exchange, data.model)
    documents = [document if isinstance(document, str) else document.text for document in data.documents]
    check_texts(data.query, documents)
    inputs = [*documents, data.query]  # an error that counts inputs then has the documents' own numbers
    metered = await exchange.reserve(most_input_tokens(inputs))
    try:
        found = await engine.embed(inputs)
    except ContextLengthExceeded as error:
        raise ContextLengthExceeded(f"documents, and the query after them: {error.message}", param="documents") from error
    metered.embedded_tokens = found.num_tokens
    await exchange.settle()
    scores = cosines(found.vectors[-1], found.vectors[:-1])
    return text_wire.RerankReply(
        model=found.model,
        results=to_results(scores, documents if data.return_documents else None)[: data.top_n],
        usage=text_wire.EmbeddingUsage(prompt_tokens=found.num_tokens, total_tokens=found.num_tokens),
    )


def check_texts(query: str, documents: Sequence[str]) -> None:
    if not query:
        raise BadRequest("query: it is empty", param="query")
    for i, document in enumerate(documents):
        if not document:
            raise BadRequest(f"documents[{i}]: it is empty", param=f"documents[{i}]")


def cosines(query: Sequence[float], documents: Sequence[Sequence[float]]) -> list[float]:
    """Of unit-length vectors, so that the products are cosines; to seven digits, as many as float32 has."""
    products = np.array(documents) @ np.array(query)  # (documents, width) @ (width,)
    return [round(float(value), 7) for value in np.clip(products, -1.0, 1.0)]  # rounding may have carried them past 1


def to_results(scores: Sequence[float], documents: Sequence[str] | None) -> list[text_wire.RerankResult]:
    """The nearest first; equally near ones as they came. `documents`: their texts, if they are to be told."""
    results = [text_wire.RerankResult(index=i, relevance_score=score) for i, score in enumerate(scores)]
    if documents is not None:
        for result in results:
            result.document = text_wire.RerankDocument(text=documents[result.index])
    return sorted(results, key=lambda result: -result.relevance_score)
