"""Answers of /v1/responses that are kept: to be gone on from, read again, and taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Response, delete, get
from litestar.params import FromPath

from atlas.errors import NotFound, Unsupported
from atlas.gateway import responses_wire as wire
from atlas.gateway.errors import PreviousResponseNotFound
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.openapi import NAMING, replies
from atlas.store import KeptResponse, KeptResponses

Items = list[dict[str, Any]]


@get(
    "/v1/responses/{response_id:str}",
    opt={"access": "chat"},
    tags=["responses"],
    summary="An answer of one's own that is kept",
    responses=replies(wire.ResponseReply, NAMING),
)
async def get_response(request: HTTPRequest, response_id: FromPath[str]) -> Response[bytes]:
    exchange = exchange_of(request)
    kept = await _found(exchange, response_id)
    if kept is None:
        raise _unknown(response_id)
    return Response(bytes(kept.reply), media_type="application/json")


@delete(
    "/v1/responses/{response_id:str}",
    status_code=200,
    opt={"access": "chat"},
    tags=["responses"],
    summary="Forget an answer of one's own; later ones of its conversation stay",
    responses=replies(wire.ResponseDeleted, NAMING),
)
async def delete_response(request: HTTPRequest, response_id: FromPath[str]) -> wire.ResponseDeleted:
    exchange = exchange_of(request)
    kept = keeper(exchange)
    if kept is None or not await kept.remove(response_id, owner=exchange.owner):
        raise _unknown(response_id)
    return wire.ResponseDeleted(id=response_id)


async def conversation(exchange: Exchange, request: wire.ResponseRequest) -> tuple[Items, Items]:
    """(what was said before, by a kept answer; what this request adds), as items.

    Raises:
        PreviousResponseNotFound: the answer that is to be gone on from is not there.
        Unsupported: this server keeps none.
    """
    added: Items = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    if not request.previous_response_id:
        return [], added
    if keeper(exchange) is None:
        raise Unsupported(
            "previous_response_id: this server keeps no answers (responses.keep_s is 0); send the conversation in `input`",
            param="previous_response_id",
        )
    kept = await _found(exchange, request.previous_response_id)
    if kept is None:
        raise PreviousResponseNotFound(
            f"previous_response_id: no answer {request.previous_response_id[:64]!r} of yours is kept (any more); "
            "send the conversation in `input`",
            param="previous_response_id",
        )
    return kept.items, added


async def keep(exchange: Exchange, items: Sequence[dict[str, Any]], reply: wire.ResponseReply) -> None:
    """Have a finished answer kept if it is to be; it says itself whether it is."""
    kept = keeper(exchange)
    if not reply.store or kept is None:
        return
    output = msgspec.to_builtins(reply.output)
    answer = KeptResponse(owner=exchange.owner, items=[*items, *output], reply=msgspec.Raw(msgspec.json.encode(reply)))
    reply.store = await kept.keep(reply.id, answer)


def keeper(exchange: Exchange) -> KeptResponses | None:
    """None where none are kept."""
    kept = exchange.deps.responses
    return kept if kept is not None and kept.is_on else None


async def _found(exchange: Exchange, response_id: str) -> KeptResponse | None:
    kept = keeper(exchange)
    return None if kept is None else await kept.find(response_id, owner=exchange.owner)


def _unknown(response_id: str) -> NotFound:
    return NotFound(f"no answer {response_id[:64]!r} of yours is kept (any more)")
