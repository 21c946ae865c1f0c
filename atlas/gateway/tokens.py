"""Counting and cutting text into tokens, without generating."""

from __future__ import annotations

from collections.abc import Sequence

from litestar import post
from litestar.params import JSONBody

from atlas.engine import Engine
from atlas.errors import BadRequest, Unsupported
from atlas.gateway import text_wire, wire
from atlas.gateway.convert import chat_prompt
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of, still_loading
from atlas.gateway.models import choose_chat, choose_engine
from atlas.gateway.openapi import replies


@post(
    ["/tokenize", "/v1/tokenize"],
    status_code=200,
    opt={"access": "chat"},
    tags=["tokens"],
    summary="Text to token ids",
    responses=replies(text_wire.TokenizeReply),
)
async def tokenize(request: HTTPRequest, data: JSONBody[text_wire.TokenizeRequest]) -> text_wire.TokenizeReply:
    engine = _tokenizer(exchange_of(request), data.model)
    text = data.content if data.content is not None else data.prompt
    if text is None:
        raise BadRequest("content: missing; send the text to cut", param="content")
    tokens = await engine.tokenize(text, special=data.parse_special)
    told = await _pieces(engine, tokens) if data.with_pieces else list[int | text_wire.TokenPiece](tokens)
    return text_wire.TokenizeReply(tokens=told, count=len(tokens), max_model_len=engine.capabilities.context_tokens)


@post(
    ["/detokenize", "/v1/detokenize"],
    status_code=200,
    opt={"access": "chat"},
    tags=["tokens"],
    summary="Token ids to text",
    responses=replies(text_wire.DetokenizeReply),
)
async def detokenize(request: HTTPRequest, data: JSONBody[text_wire.DetokenizeRequest]) -> text_wire.DetokenizeReply:
    engine = _tokenizer(exchange_of(request), data.model)
    text = await engine.detokenize(data.tokens)
    return text_wire.DetokenizeReply(content=text, prompt=text)


@post(
    "/v1/chat/completions/input_tokens",
    status_code=200,
    opt={"access": "chat"},
    tags=["tokens"],
    summary="Count a conversation's tokens",
    responses=replies(text_wire.InputTokens),
)
async def chat_input_tokens(request: HTTPRequest, data: JSONBody[wire.ChatCompletionRequest]) -> text_wire.InputTokens:
    exchange = exchange_of(request)
    engine, _ = choose_chat(exchange, data.model)
    prompt = chat_prompt(data, engine.capabilities, owner=exchange.owner)
    return text_wire.InputTokens(input_tokens=await engine.count_tokens(prompt))


async def _pieces(engine: Engine, tokens: Sequence[int]) -> list[int | text_wire.TokenPiece]:
    found = await engine.pieces(tokens)
    return [text_wire.TokenPiece(id=token, piece=to_piece(raw)) for token, raw in zip(tokens, found, strict=True)]


def to_piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


def _tokenizer(exchange: Exchange, model: str | None) -> Engine:
    loaded = exchange.deps.models.loaded_id() if model is None else model
    if loaded is None:
        raise still_loading()
    engine = choose_engine(exchange, loaded)
    if not engine.capabilities.tokenize:
        raise Unsupported(f"model {engine.capabilities.model!r} runs elsewhere and offers no tokenizer")
    return engine
