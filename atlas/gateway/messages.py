"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's dialect of the same answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
from litestar import post
from litestar.params import JSONBody
from litestar.response import Stream
from msgspec import UNSET

from atlas.engine import Group
from atlas.errors import AtlasError
from atlas.gateway import anthropic_wire as wire
from atlas.gateway.answer import aborted, deltas, finished, guarded
from atlas.gateway.anthropic_convert import counted_prompt, messages_prompt
from atlas.gateway.atlas import begin
from atlas.gateway.errors import anthropic_reply
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.models import Chosen, choose_chat
from atlas.gateway.openapi import StreamingOperation, anthropic_replies
from atlas.gateway.sse import EventStream, event
from atlas.types import Delta, Generation, ToolCallDelta


@post(
    "/v1/messages",
    status_code=200,
    opt={"access": "chat"},
    tags=["anthropic"],
    summary="Answer a conversation",
    responses=anthropic_replies(wire.MessageReply),
    operation_class=StreamingOperation,
)
async def messages(request: HTTPRequest, data: JSONBody[wire.MessagesRequest]) -> wire.MessageReply | Stream:
    exchange = exchange_of(request)
    engine, is_proved = choose_mapped(exchange, data.model)
    prompt = messages_prompt(data, engine.capabilities, owner=exchange.owner)
    await begin(exchange, engine, prompt, is_proved=is_proved, is_streamed=bool(data.stream))
    if data.stream:
        events = guarded(exchange, MessageStream(exchange).events(), render=_error_event(exchange))
        return EventStream(exchange, events, ping=_named(wire.Ping()))
    [[generation]] = await finished(request, exchange)
    return to_reply(exchange, generation)


@post(
    "/v1/messages/count_tokens",
    status_code=200,
    opt={"access": "chat"},
    tags=["anthropic"],
    summary="Count a conversation's tokens",
    responses=anthropic_replies(wire.InputTokenCount),
)
async def count_tokens(request: HTTPRequest, data: JSONBody[wire.CountTokensRequest]) -> wire.InputTokenCount:
    exchange = exchange_of(request)
    engine, _ = choose_mapped(exchange, data.model)
    prompt = counted_prompt(data, engine.capabilities, owner=exchange.owner)
    return wire.InputTokenCount(input_tokens=await engine.count_tokens(prompt))


def choose_mapped(exchange: Exchange, model: str) -> Chosen:
    """Who answers for this id; claude-* means the loaded model unless that is switched off."""
    deps = exchange.deps
    loaded = deps.models.loaded_id()
    if loaded and model.startswith("claude-") and deps.anthropic.model_map and model not in deps.models.ids():
        model = loaded
    return choose_chat(exchange, model)


def to_reply(exchange: Exchange, generation: Generation) -> wire.MessageReply:
    stop = to_stop(generation, exchange.length_reason)
    return wire.MessageReply(
        id=exchange.answer_id("msg_"),
        model=exchange.model,
        content=list(to_blocks(generation)),
        usage=to_usage(exchange.groups[0], generation),
        stop_reason=stop.stop_reason,
        stop_sequence=stop.stop_sequence,
        length_reason=stop.length_reason,
        atlas=exchange.proof or UNSET,
    )


def to_blocks(generation: Generation) -> Iterator[wire.ReplyBlock]:
    if generation.reasoning:
        yield wire.ThinkingBlock(thinking=generation.reasoning)
    if generation.text:
        yield wire.TextBlock(text=generation.text)
    for call in generation.tool_calls:
        yield wire.ToolUseBlock(id=call.id, name=call.name, input=to_input(call.arguments))


def to_input(arguments: str) -> dict[str, Any]:
    """A call's arguments as an object; what is none (the answer was cut in its middle, say) is handed on as text."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {"arguments": arguments}


def to_stop(generation: Generation, length_reason: str = "") -> wire.StopDelta:
    """`length_reason`: the limit that ended the answer early."""
    if generation.finish_reason == "tool_calls":
        return wire.StopDelta(stop_reason="tool_use", stop_sequence=None)
    if generation.finish_reason == "length":
        return wire.StopDelta(stop_reason="max_tokens", stop_sequence=None, length_reason=length_reason or UNSET)
    reason: wire.StopReason = "end_turn" if generation.matched_stop is None else "stop_sequence"
    return wire.StopDelta(stop_reason=reason, stop_sequence=generation.matched_stop)


def to_usage(group: Group, generation: Generation | None) -> wire.AnthropicUsage:
    return wire.AnthropicUsage(
        input_tokens=group.prompt_tokens - group.cached_tokens,
        output_tokens=generation.num_tokens if generation else 0,
        cache_read_input_tokens=group.cached_tokens,
    )


class MessageStream:
    """The events of one answer: blocks open and close one after the other, each with its own index."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._open: str = ""  # kind of the block that is open: "", "thinking", "text" or "call <index>"
        self._index = -1

    async def events(self) -> AsyncIterator[bytes]:
        if not await self.exchange.started():  # the first event says how long the prompt is
            raise aborted(self.exchange)
        [group] = self.exchange.groups
        name = self.exchange.answer_id("msg_")
        empty = wire.MessageReply(id=name, model=self.exchange.model, content=[], usage=to_usage(group, None))
        yield _named(wire.MessageStart(message=empty)) + _named(wire.Ping())
        async for _, delta in deltas(self.exchange):
            yield b"".join(map(_named, self._parts(delta)))
        for part in self._end():
            yield _named(part)

    def _parts(self, delta: Delta) -> Iterator[wire.StreamEvent]:
        if delta.reasoning:
            yield from self._enter("thinking", wire.ThinkingBlock(thinking=""))
            yield wire.BlockDelta(index=self._index, delta=wire.ThinkingDelta(thinking=delta.reasoning))
        if delta.text:
            yield from self._enter("text", wire.TextBlock(text=""))
            yield wire.BlockDelta(index=self._index, delta=wire.TextDelta(text=delta.text))
        for call in delta.tool_calls:
            yield from self._call(call)

    def _call(self, call: ToolCallDelta) -> Iterator[wire.StreamEvent]:
        yield from self._enter(f"call {call.index}", wire.ToolUseBlock(id=call.id or "", name=call.name or "", input={}))
        if call.arguments:
            yield wire.BlockDelta(index=self._index, delta=wire.InputJSONDelta(partial_json=call.arguments))

    def _enter(self, kind: str, block: wire.ReplyBlock) -> Iterator[wire.StreamEvent]:
        """Close the open block and open this one, unless it is the open one."""
        if kind == self._open:
            return
        yield from self._leave()
        self._open = kind
        self._index += 1
        yield wire.BlockStart(index=self._index, content_block=block)

    def _leave(self) -> Iterator[wire.StreamEvent]:
        if self._open == "thinking":
            yield wire.BlockDelta(index=self._index, delta=wire.SignatureDelta())
        if self._open:
            yield wire.BlockStop(index=self._index)
        self._open = ""

    def _end(self) -> Iterator[wire.StreamEvent]:
        yield from self._leave()
        [group] = self.exchange.groups
        [generation] = group.generations
        stop = to_stop(generation, self.exchange.length_reason)
        yield wire.MessageDelta(delta=stop, usage=to_usage(group, generation), atlas=self.exchange.proof or UNSET)
        yield wire.MessageStop()


def _named(part: wire.StreamEvent) -> bytes:
    """Anthropic's events carry their type twice: as the event's name and inside its data."""
    return event(part, name=part.type)


def _error_event(exchange: Exchange) -> Callable[[AtlasError], bytes]:
    def render(error: AtlasError) -> bytes:
        return _named(anthropic_reply(error, exchange.request_id))

    return render
