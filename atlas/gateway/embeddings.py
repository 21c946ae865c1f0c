"""POST /v1/embeddings: unit-length vectors, as lists or as the base64 that `openai` asks for by default."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

from litestar import post
from litestar.params import JSONBody

from atlas.errors import BadRequest, Unsupported
from atlas.gateway import text_wire
from atlas.gateway.exchange import HTTPRequest, exchange_of
from atlas.gateway.inputs import to_inputs
from atlas.gateway.models import choose_embedder
from atlas.gateway.openapi import replies
from atlas.gateway.tariff import most_input_tokens
from atlas.types import Capabilities

MAX_INPUTS = 2048  # OpenAI's bound


@post(
    "/v1/embeddings",
    status_code=200,
    opt={"access": "embeddings"},
    tags=["embeddings"],
    summary="Turn texts into vectors",
    responses=replies(text_wire.EmbeddingList),
)
async def embeddings(request: HTTPRequest, data: JSONBody[text_wire.EmbeddingRequest]) -> text_wire.EmbeddingList:
    exchange = exchange_of(request)
    engine = choose_embedder(exchange, data.model)
    inputs = to_inputs(data.input, "input")
    if len(inputs) > MAX_INPUTS:
        raise BadRequest(f"input: {len(inputs)} entries are more than {MAX_INPUTS}", param="input")
    check_dimensions(data.dimensions, engine.capabilities)
    metered = await exchange.reserve(most_input_tokens(inputs))
    found = await engine.embed(inputs)
    metered.embedded_tokens = found.num_tokens
    await exchange.settle()
    return text_wire.EmbeddingList(
        data=[
            text_wire.Embedding(index=i, embedding=encode(vector, data.encoding_format)) for i, vector in enumerate(found.vectors)
        ],
        model=found.model,
        usage=text_wire.EmbeddingUsage(prompt_tokens=found.num_tokens, total_tokens=found.num_tokens),
    )


def check_dimensions(dimensions: int | None, capabilities: Capabilities) -> None:
    """A cut vector would be another embedding: only the model's own width is served."""
    width = capabilities.embedding_width
    if dimensions is not None and dimensions != width:
        message = f"dimensions: {dimensions} asked for, model {capabilities.embeddings!r} makes {width}; leave it out"
        raise Unsupported(message, param="dimensions")


def encode(vector: Sequence[float], encoding_format: str | None) -> list[float] | str:
    if encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return list(vector)
