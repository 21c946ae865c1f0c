"""POST /v1/completions: raw prompts and fill-in-the-middle, without a chat template."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

from litestar import post
from litestar.params import JSONBody
from litestar.response import Stream
from msgspec import UNSET, UnsetType

from atlas.engine import Engine
from atlas.errors import BadRequest, Unsupported
from atlas.gateway import fallback, text_wire, wire
from atlas.gateway.answer import FINGERPRINT, deltas, finished, finite, guarded, readable, to_usage, top_of
from atlas.gateway.convert import check_sampling_fields, to_sampling, to_stop
from atlas.gateway.errors import error_event
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.inputs import Input, to_inputs
from atlas.gateway.models import choose_answering
from atlas.gateway.openapi import StreamingOperation, replies
from atlas.gateway.sse import DONE, EventStream, event
from atlas.types import Capabilities, Delta, FinishReason, Generation, Prompt, TokenLogprob

MAX_CANDIDATES = 128  # prompts times n of one request


@post(
    "/v1/completions",
    status_code=200,
    opt={"access": "chat"},
    tags=["completions"],
    summary="Continue a text, or fill a gap in it",
    responses=replies(text_wire.Completion),
    operation_class=StreamingOperation,
)
async def completions(request: HTTPRequest, data: JSONBody[text_wire.CompletionRequest]) -> text_wire.Completion | Stream:
    exchange = exchange_of(request)
    engine = choose_answering(exchange, data.model)
    prompts = completion_prompts(data, engine.capabilities, owner=exchange.owner)
    echoes = [await _text_of(engine, prompt) if data.echo else "" for prompt in prompts]
    await fallback.submit(exchange, engine, *prompts, is_streamed=bool(data.stream))
    answer = CompletionAnswer(exchange, data, echoes)
    if data.stream:
        return EventStream(exchange, guarded(exchange, answer.events(), render=error_event, last=DONE))
    return answer.whole(await finished(request, exchange))


def completion_prompts(request: text_wire.CompletionRequest, capabilities: Capabilities, *, owner: str) -> list[Prompt]:
    """One prompt per entry of `prompt`.

    Raises:
        BadRequest: fields contradict each other.
        Unsupported: a field that this server, or this model, cannot honour.
    """
    check_sampling_fields(request)
    inputs = to_inputs(request.prompt, "prompt")
    n = request.n or 1
    if len(inputs) * n > MAX_CANDIDATES:
        raise BadRequest(f"prompt: {len(inputs)} prompts times n = {n} is more than {MAX_CANDIDATES} answers", param="prompt")
    if request.echo and request.logprobs is not None:
        raise Unsupported("echo: log-probabilities of the prompt are not available; drop echo or logprobs", param="echo")
    if request.suffix is not None and any(not isinstance(entry, str) for entry in inputs):
        raise BadRequest("suffix: needs a prompt of text", param="suffix")
    return [_prompt(request, entry, capabilities, owner=owner) for entry in inputs]


def _prompt(request: text_wire.CompletionRequest, entry: Input, capabilities: Capabilities, *, owner: str) -> Prompt:
    return Prompt(
        model=capabilities.model,
        text=entry if isinstance(entry, str) else None,
        tokens=entry if isinstance(entry, tuple) else None,
        suffix=request.suffix,
        sampling=(to_sampling(request),),
        n=request.n or 1,
        stop=to_stop(request.stop),
        max_tokens=request.max_tokens,
        json_schema=request.json_schema,
        grammar=request.grammar or None,
        top_logprobs=request.logprobs,
        owner=owner,
    )


async def _text_of(engine: Engine, prompt: Prompt) -> str:
    return prompt.text if prompt.text is not None else await engine.detokenize(prompt.tokens or ())


class CompletionAnswer:
    """One answer under construction; candidate i of prompt p is choice p * n + i."""

    def __init__(self, exchange: Exchange, request: text_wire.CompletionRequest, echoes: Sequence[str]) -> None:
        self.exchange = exchange
        self.n = request.n or 1
        self.echoes = echoes
        self.with_usage = bool(request.stream_options and request.stream_options.include_usage)
        self.id = exchange.answer_id("cmpl-")
        self.created = int(time.time())
        self._num_chars: dict[int, int] = {}  # per choice begun: characters of the tokens whose log-probabilities were sent

    def whole(self, answers: Sequence[Sequence[Generation]]) -> text_wire.Completion:
        choices = [self._whole_choice(p, generation) for p, group in enumerate(answers) for generation in group]
        return self._reply(choices, usage=to_usage(self.exchange.groups))

    async def events(self) -> AsyncIterator[bytes]:
        async for position, delta in deltas(self.exchange):
            yield event(self._reply([self._choice(position, delta)], usage=None if self.with_usage else UNSET))
        if self.with_usage:
            yield event(self._reply([], usage=to_usage(self.exchange.groups)))

    def _reply(self, choices: list[text_wire.CompletionChoice], *, usage: wire.Usage | UnsetType | None) -> text_wire.Completion:
        return text_wire.Completion(
            id=self.id,
            created=self.created,
            model=self.exchange.model,
            choices=choices,
            system_fingerprint=FINGERPRINT,
            usage=usage,
        )

    def _whole_choice(self, position: int, generation: Generation) -> text_wire.CompletionChoice:
        return text_wire.CompletionChoice(
            index=position * self.n + generation.index,
            text=self.echoes[position] + generation.text,
            finish_reason=to_finish_reason(generation.finish_reason),
            logprobs=to_logprobs(generation.logprobs, 0) if generation.logprobs else None,
            length_reason=self._length_reason(generation.finish_reason),
        )

    def _choice(self, position: int, delta: Delta) -> text_wire.CompletionChoice:
        index = position * self.n + delta.index
        echo = "" if index in self._num_chars else self.echoes[position]
        start = self._num_chars.setdefault(index, 0)
        self._num_chars[index] += sum(len(readable(token.text)) for token in delta.logprobs)
        return text_wire.CompletionChoice(
            index=index,
            text=echo + delta.text,
            finish_reason=to_finish_reason(delta.finish_reason) if delta.finish_reason else None,
            logprobs=to_logprobs(delta.logprobs, start) if delta.logprobs else None,
            length_reason=self._length_reason(delta.finish_reason),
        )

    def _length_reason(self, reason: FinishReason | None) -> str | UnsetType:
        """The limit that ended this answer early."""
        return (reason == "length" and self.exchange.length_reason) or UNSET


def to_finish_reason(reason: FinishReason) -> text_wire.PlainFinishReason:
    """A raw prompt has no tool calls, and `abort` becomes an error before."""
    return "length" if reason == "length" else "stop"


def to_logprobs(tokens: Sequence[TokenLogprob], start: int) -> text_wire.CompletionLogprobs:
    """`start`: characters of the choice's text before the first of these tokens."""
    texts = [readable(token.text) for token in tokens]
    return text_wire.CompletionLogprobs(
        tokens=texts,
        token_logprobs=[finite(token.logprob) for token in tokens],
        top_logprobs=[{readable(text): logprob for text, logprob in top_of(token)} for token in tokens],
        text_offset=[start + sum(map(len, texts[:i])) for i in range(len(texts))],
    )
