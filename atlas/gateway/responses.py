"""POST /v1/responses: OpenAI's Responses API. A request carries its conversation, or goes on from an answer that is kept."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence

from litestar import post
from litestar.params import JSONBody
from litestar.response import Stream
from msgspec import UNSET

from atlas.engine import Group
from atlas.errors import AtlasError
from atlas.gateway import responses_wire as wire
from atlas.gateway.answer import deltas, finished, guarded
from atlas.gateway.atlas import begin
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.models import choose_chat
from atlas.gateway.openapi import StreamingOperation, replies
from atlas.gateway.responses_convert import AnyTool, read_tools, response_prompt
from atlas.gateway.responses_items import OpenItem, OpenMessage, OpenReasoning, open_call, to_output
from atlas.gateway.responses_kept import Items, conversation, keep, keeper
from atlas.gateway.sse import EventStream, event
from atlas.types import Delta, Generation, ToolCallDelta


@post(
    "/v1/responses",
    status_code=200,
    opt={"access": "chat"},
    tags=["responses"],
    summary="Answer a conversation, or go on from an answer",
    responses=replies(wire.ResponseReply),
    operation_class=StreamingOperation,
)
async def responses(request: HTTPRequest, data: JSONBody[wire.ResponseRequest]) -> wire.ResponseReply | Stream:
    exchange = exchange_of(request)
    engine, is_proved = choose_chat(exchange, data.model)
    tools = read_tools(data)
    before, added = await conversation(exchange, data)
    prompt = response_prompt(data, tools, engine.capabilities, owner=exchange.owner, before=before, added=added)
    await begin(exchange, engine, prompt, is_proved=is_proved, is_streamed=bool(data.stream))
    answer = ResponseAnswer(exchange, data, tools, items=[*before, *added])
    if data.stream:
        return EventStream(exchange, guarded(exchange, answer.events(), render=answer.failure))
    [[generation]] = await finished(request, exchange)
    return await answer.whole(generation)


class ResponseAnswer:
    """One answer under construction: its items open and close one after the other, each with its own index."""

    def __init__(self, exchange: Exchange, request: wire.ResponseRequest, tools: Sequence[AnyTool], *, items: Items) -> None:
        self.exchange = exchange
        self._items = items  # the conversation that it answers
        self._custom = frozenset(tool.name for tool in tools if isinstance(tool, wire.CustomTool))
        self._reply = first_reply(exchange, request, tools)
        self._kind = ""  # of the open item: "", "reasoning", "text" or "call <index>"
        self._open: OpenItem | None = None
        self._sequence_number = 0

    async def whole(self, generation: Generation) -> wire.ResponseReply:
        self._reply.output = to_output(generation, custom=self._custom)
        self._close(generation)
        await keep(self.exchange, self._items, self._reply)
        return self._reply

    async def events(self) -> AsyncIterator[bytes]:
        for stage in ("created", "in_progress"):
            yield self._sent(wire.ResponseEvent(type=f"response.{stage}", response=self._reply))
        async for _, delta in deltas(self.exchange):
            yield b"".join(map(self._sent, self._parts(delta)))
        for part in self._end(self.exchange.generations[0]):
            yield self._sent(part)
        await keep(self.exchange, self._items, self._reply)
        yield self._sent(wire.ResponseEvent(type=f"response.{self._reply.status}", response=self._reply))

    def failure(self, error: AtlasError) -> bytes:
        """The last event of a stream that failed."""
        self._reply.status, self._reply.store = "failed", False
        self._reply.error = wire.ResponseError(code=error.code, message=error.message)
        return self._sent(wire.ResponseEvent(type="response.failed", response=self._reply))

    def _parts(self, delta: Delta) -> Iterator[wire.Event]:
        if delta.reasoning:
            yield from self._write("reasoning", delta.reasoning)
        if delta.text:
            yield from self._write("text", delta.text)
        for call in delta.tool_calls:
            yield from self._write(f"call {call.index}", call.arguments, call)

    def _write(self, kind: str, piece: str, call: ToolCallDelta | None = None) -> Iterator[wire.Event]:
        """Add a piece to the open item, once that is of this kind."""
        if kind != self._kind or self._open is None:
            yield from self._leave("completed")
            self._kind, self._open = kind, self._new(kind, call)
            yield from self._open.begin()
        if piece:
            yield from self._open.feed(piece)

    def _new(self, kind: str, call: ToolCallDelta | None) -> OpenItem:
        index = len(self._reply.output)
        if call is not None:
            return open_call(index, call.id or "", call.name or "", custom=self._custom)
        return OpenReasoning(index) if kind == "reasoning" else OpenMessage(index)

    def _leave(self, status: wire.ItemStatus) -> Iterator[wire.Event]:
        if self._open is not None:
            yield from self._open.end(status)
            self._reply.output.append(self._open.item(self._open.text, status))
        self._open = None

    def _end(self, generation: Generation) -> Iterator[wire.Event]:
        if self._open is None:
            yield from self._write("text", "")  # an empty answer is a message as well
        yield from self._leave("incomplete" if generation.finish_reason == "length" else "completed")
        self._close(generation)

    def _close(self, generation: Generation) -> None:
        self._reply.status = "completed"
        self._reply.atlas = self.exchange.proof or UNSET
        self._reply.usage = to_usage(self.exchange.groups[0], generation)
        if generation.finish_reason == "length":
            self._reply.status = "incomplete"
            self._reply.incomplete_details = wire.IncompleteDetails(length_reason=self.exchange.length_reason or UNSET)

    def _sent(self, part: wire.Event) -> bytes:
        """The event with its number; as Anthropic's, it carries its type twice."""
        part.sequence_number = self._sequence_number
        self._sequence_number += 1
        return event(part, name=part.type)


def first_reply(exchange: Exchange, request: wire.ResponseRequest, tools: Sequence[AnyTool]) -> wire.ResponseReply:
    """The reply before anything is written: what was asked, repeated."""
    return wire.ResponseReply(
        id=exchange.answer_id("resp_"),
        created_at=int(time.time()),
        model=exchange.model,
        status="in_progress",
        output=[],
        tools=list(tools),
        tool_choice=request.tool_choice or "auto",
        text=wire.TextOptions(format=(request.text and request.text.format) or wire.TextFormat()),
        reasoning=request.reasoning or wire.Reasoning(),
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        previous_response_id=request.previous_response_id or None,
        store=request.store is not False and keeper(exchange) is not None,
    )


def to_usage(group: Group, generation: Generation) -> wire.ResponseUsage:
    return wire.ResponseUsage(
        input_tokens=group.prompt_tokens,
        input_tokens_details=wire.InputTokensDetails(cached_tokens=group.cached_tokens),
        output_tokens=generation.num_tokens,
        output_tokens_details=wire.OutputTokensDetails(reasoning_tokens=generation.reasoning_tokens),
        total_tokens=group.prompt_tokens + generation.num_tokens,
    )
