"""POST /v1/chat/completions: the wire's request -> Prompt, Deltas and Generations -> the wire's answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

from litestar import post
from litestar.params import JSONBody
from litestar.response import Stream
from msgspec import UNSET

from atlas.gateway import wire
from atlas.gateway.answer import FINGERPRINT, deltas, finished, finite, guarded, readable, to_usage, top_of
from atlas.gateway.atlas import begin
from atlas.gateway.convert import chat_prompt
from atlas.gateway.errors import error_event
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.models import choose_chat
from atlas.gateway.openapi import StreamingOperation, replies
from atlas.gateway.sse import DONE, EventStream, event
from atlas.types import Delta, FinishReason, Generation, TokenLogprob, ToolCallDelta


@post(
    "/v1/chat/completions",
    status_code=200,
    opt={"access": "chat"},
    tags=["chat"],
    summary="Answer a conversation",
    responses=replies(wire.ChatCompletion),
    operation_class=StreamingOperation,
)
async def chat_completions(request: HTTPRequest, data: JSONBody[wire.ChatCompletionRequest]) -> wire.ChatCompletion | Stream:
    exchange = exchange_of(request)
    engine, is_proved = choose_chat(exchange, data.model)
    prompt = chat_prompt(data, engine.capabilities, owner=exchange.owner)
    await begin(exchange, engine, prompt, is_proved=is_proved, is_streamed=bool(data.stream))
    answer = ChatAnswer(exchange, with_usage=bool(data.stream_options and data.stream_options.include_usage))
    if data.stream:
        return EventStream(exchange, guarded(exchange, answer.events(), render=error_event, last=DONE))
    return answer.whole(*await finished(request, exchange))


class ChatAnswer:
    """One answer under construction."""

    def __init__(self, exchange: Exchange, *, with_usage: bool) -> None:
        self.exchange = exchange
        self.with_usage = with_usage
        self.id = exchange.answer_id("chatcmpl-")
        self.created = int(time.time())
        self._begun: set[int] = set()  # candidates whose role has been sent

    def whole(self, generations: Sequence[Generation]) -> wire.ChatCompletion:
        return wire.ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.exchange.model,
            choices=[to_choice(generation, self.exchange.length_reason) for generation in generations],
            usage=to_usage(self.exchange.groups),
            system_fingerprint=FINGERPRINT,
            atlas=self.exchange.proof or UNSET,
        )

    async def events(self) -> AsyncIterator[bytes]:
        async for _, delta in deltas(self.exchange):
            if delta.index not in self._begun:
                self._begun.add(delta.index)
                yield event(self._chunk([role_first(delta.index)]))
            is_last = delta.finish_reason is not None
            yield event(self._chunk([to_chunk_choice(delta, self.exchange.length_reason)], is_last=is_last))
        if self.with_usage:
            yield event(self._chunk([], usage=to_usage(self.exchange.groups)))

    def _chunk(
        self, choices: list[wire.ChunkChoice], usage: wire.Usage | None = None, *, is_last: bool = False
    ) -> wire.ChatCompletionChunk:
        return wire.ChatCompletionChunk(
            id=self.id,
            created=self.created,
            model=self.exchange.model,
            choices=choices,
            system_fingerprint=FINGERPRINT,
            usage=usage if self.with_usage else UNSET,
            atlas=(self.exchange.proof or UNSET) if is_last else UNSET,
        )


def role_first(index: int) -> wire.ChunkChoice:
    """OpenAI's streams open each choice with its role alone, and clients rely on it."""
    return wire.ChunkChoice(index=index, delta=wire.MessageDelta(role="assistant", content=""))


def to_chunk_choice(delta: Delta, length_reason: str = "") -> wire.ChunkChoice:
    """`length_reason`: the limit that ended the answer early."""
    message = wire.MessageDelta(
        content=delta.text or UNSET,
        reasoning_content=delta.reasoning or UNSET,
        tool_calls=[to_call_delta(call) for call in delta.tool_calls] or UNSET,
    )
    return wire.ChunkChoice(
        index=delta.index,
        delta=message,
        finish_reason=to_finish_reason(delta.finish_reason) if delta.finish_reason else None,
        logprobs=to_logprobs(delta.logprobs) if delta.logprobs else None,
        length_reason=length_reason if length_reason and delta.finish_reason == "length" else UNSET,
    )


def to_choice(generation: Generation, length_reason: str = "") -> wire.ChatChoice:
    calls = [
        wire.ReplyToolCall(id=call.id, function=wire.FunctionCall(name=call.name, arguments=call.arguments))
        for call in generation.tool_calls
    ]
    message = wire.ReplyMessage(
        content=None if calls and not generation.text else generation.text,
        reasoning_content=generation.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )
    return wire.ChatChoice(
        index=generation.index,
        message=message,
        finish_reason=to_finish_reason(generation.finish_reason),
        logprobs=to_logprobs(generation.logprobs) if generation.logprobs else None,
        length_reason=length_reason if length_reason and generation.finish_reason == "length" else UNSET,
    )


def to_finish_reason(reason: FinishReason) -> wire.FinishReason:
    """`abort` never reaches the wire: it becomes an error before."""
    assert reason != "abort"
    return reason


def to_call_delta(call: ToolCallDelta) -> wire.DeltaToolCall:
    function = wire.FunctionDelta(name=call.name or UNSET, arguments=call.arguments)
    return wire.DeltaToolCall(
        index=call.index, function=function, id=call.id or UNSET, type="function" if call.id is not None else UNSET
    )


def to_logprobs(tokens: Sequence[TokenLogprob]) -> wire.ChoiceLogprobs:
    return wire.ChoiceLogprobs(
        content=[
            wire.TokenLogprobs(
                token=readable(token.text),
                logprob=finite(token.logprob),
                bytes=list(token.text),
                top_logprobs=[
                    wire.TopLogprob(token=readable(text), logprob=logprob, bytes=list(text)) for text, logprob in top_of(token)
                ],
            )
            for token in tokens
        ]
    )
