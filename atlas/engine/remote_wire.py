"""OpenAI's wire format as a client sees it: our prompts to request bodies, chunks of a stream to our values.

Peers differ: every field that some server leaves out or sends as null has a default here, and names that only some servers use
(`reasoning`, `stop_reason`) are read where they appear.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from atlas.errors import (
    AtlasError,
    BadRequest,
    ContextLengthExceeded,
    EngineOverloaded,
    EngineUnavailable,
    ModelNotFound,
    UpstreamFailed,
)
from atlas.types import FinishReason, Message, Prompt, Sampling, TokenLogprob, Tool

T = TypeVar("T")

UNKNOWN_TOKEN = -1  # the wire carries texts of tokens, not their ids
_finish_reasons: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "abort": "abort",
}


# -- what comes back --


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class CallPiece(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: Function = msgspec.field(default_factory=Function)


class Gain(msgspec.Struct):
    """`delta` of a chat chunk, `message` of a whole answer."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallPiece] | None = None


class Alternative(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class ContentLogprob(Alternative):
    top_logprobs: list[Alternative] = []


class Logprobs(msgspec.Struct):
    """Chat has `content`; plain completions have parallel lists."""

    content: list[ContentLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class Choice(msgspec.Struct):
    index: int = 0
    delta: Gain | None = None
    message: Gain | None = None
    text: str | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # vLLM: the stop string, or a token id


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Chunk(msgspec.Struct):
    """A piece of a stream, or all of an answer that is none."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class Embedding(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class EmbeddingReply(msgspec.Struct):
    data: list[Embedding]
    usage: Usage = msgspec.field(default_factory=Usage)


class Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    context_length: int | None = None


class ModelList(msgspec.Struct):
    data: list[Model]


class ErrorBody(msgspec.Struct):
    message: str = ""
    code: str | int | None = None
    param: str | None = None


_chunks = msgspec.json.Decoder(Chunk, strict=False)


def chunk(data: bytes) -> Chunk:
    try:
        return _chunks.decode(data)
    except msgspec.MsgspecError as error:
        raise _not_openai(error) from error


def gain(choice: Choice) -> Gain:
    """What a choice brings; the calls of a whole answer are numbered, since only those of a stream are already."""
    if choice.message is None:
        return choice.delta or Gain(content=choice.text)
    for index, call in enumerate(choice.message.tool_calls or ()):
        call.index = index
    return choice.message


def finish_reason(name: str) -> FinishReason:
    """Ours for theirs; what we have no word for (a content filter) is a stop."""
    return _finish_reasons.get(name, "stop")


def token_logprobs(found: Logprobs | None, num_top: int) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of a chunk, with so many alternatives at most; ids are unknown."""
    if found is None:
        return ()
    if found.content is not None:
        return tuple(_chat_logprob(entry, num_top) for entry in found.content)
    tokens, values = found.tokens or [], found.token_logprobs or []
    tops = found.top_logprobs or [None] * len(tokens)
    return tuple(
        TokenLogprob(token=UNKNOWN_TOKEN, text=token.encode(), logprob=value or 0.0, top=_plain_top(top)[:num_top])
        for token, value, top in zip(tokens, values, tops, strict=False)
    )


def _chat_logprob(entry: ContentLogprob, num_top: int) -> TokenLogprob:
    top = tuple((UNKNOWN_TOKEN, _bytes(other), other.logprob) for other in entry.top_logprobs[:num_top])
    return TokenLogprob(token=UNKNOWN_TOKEN, text=_bytes(entry), logprob=entry.logprob, top=top)


def _plain_top(top: dict[str, float] | None) -> tuple[tuple[int, bytes, float], ...]:
    ranked = sorted((top or {}).items(), key=lambda item: -item[1])
    return tuple((UNKNOWN_TOKEN, text.encode(), value) for text, value in ranked)


def _bytes(entry: Alternative) -> bytes:
    return entry.token.encode() if entry.bytes is None else bytes(entry.bytes)


def decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind, strict=False)
    except msgspec.MsgspecError as error:
        raise _not_openai(error) from error


def _not_openai(error: msgspec.MsgspecError) -> UpstreamFailed:
    return UpstreamFailed(f"the remote server sent what is not OpenAI's format: {error}")


# -- errors --


def failure(peer: str, status: int, body: bytes, *, retry_after: str | None = None) -> AtlasError:
    """What a peer's error reply means for whoever asked us."""
    error = _error_body(body)
    text = f"{peer} answered {status}: {error.message or 'no reason given'}"
    if error.code == "context_length_exceeded":
        return ContextLengthExceeded(error.message, param=error.param)
    if error.code == "model_not_found":
        return ModelNotFound(error.message, param="model")
    if status in (400, 413, 422):
        return BadRequest(text, param=error.param)
    wait_s = _seconds(retry_after)
    if status == 429:
        return EngineOverloaded(text, retry_after_s=wait_s)
    return EngineUnavailable(text, retry_after_s=wait_s) if status == 503 else UpstreamFailed(text)


def error_text(found: object) -> str:
    """Message of an error inside a stream: an object, or just a text."""
    message = found.get("message") if isinstance(found, dict) else found
    return str(message)[:500]


def _error_body(body: bytes) -> ErrorBody:
    """OpenAI's {"error": {...}}, FastAPI's {"detail": ...}, or nothing we can read."""
    try:
        found = json.loads(body)
        found = found.get("error", found.get("detail", found)) if isinstance(found, dict) else found
        return msgspec.convert(found if isinstance(found, dict) else {"message": str(found)}, ErrorBody, strict=False)
    except (ValueError, RecursionError, msgspec.ValidationError):
        return ErrorBody(message=body[:200].decode("utf-8", "replace"))


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds; dates and absent values become one second."""
    return float(retry_after) if retry_after is not None and retry_after.isdigit() else 1.0


# -- what goes out --


class Body(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A request; strict servers refuse names they do not know, so only what is set is sent."""

    model: str
    n: int
    stream: bool
    messages: list[Turn] | None = None
    prompt: str | list[int] | None = None
    suffix: str | None = None
    stream_options: dict[str, bool] | None = None
    stop: list[str] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # with the next one and repetition_penalty vLLM's names
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    logprobs: bool | int | None = None  # a number in plain completions
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, bool] | None = None
    thinking_budget_tokens: int | None = None


class Turn(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A message of a request."""

    role: str
    content: str
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] = []
    tool_call_id: str | None = None
    name: str | None = None


def body(prompt: Prompt, sampling: Sampling, *, model: str, n: int, stream: bool) -> Body:
    """Request for `n` candidates that share `sampling`; a stream has its usage at the end."""
    made = Body(
        model=model,
        n=n,
        stream=stream,
        stream_options={"include_usage": True} if stream else None,
        stop=list(prompt.stop) or None,
        max_tokens=prompt.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        frequency_penalty=sampling.frequency_penalty or None,
        presence_penalty=sampling.presence_penalty or None,
        repetition_penalty=None if sampling.repetition_penalty == 1.0 else sampling.repetition_penalty,
        logit_bias={str(token): bias for token, bias in sampling.logit_bias.items()} or None,
    )
    if prompt.messages:
        _ask_chat(made, prompt)
    else:
        _ask_plain(made, prompt)
    return made


def path(prompt: Prompt) -> str:
    return "/chat/completions" if prompt.messages else "/completions"


def _ask_plain(made: Body, prompt: Prompt) -> None:
    made.prompt = prompt.text if prompt.tokens is None else list(prompt.tokens)
    made.suffix, made.logprobs = prompt.suffix, _num_top(prompt)


def _ask_chat(made: Body, prompt: Prompt) -> None:
    made.messages = list(map(_message, prompt.messages))
    if prompt.tools:
        made.tools, made.tool_choice = list(map(_tool, prompt.tools)), _tool_choice(prompt.tool_choice)
        made.parallel_tool_calls = prompt.parallel_tool_calls
    if prompt.json_schema is not None:
        made.response_format = _response_format(prompt.json_schema)
    if prompt.top_logprobs is not None:
        made.logprobs, made.top_logprobs = True, _num_top(prompt)
    if prompt.thinking is not None:
        made.chat_template_kwargs = {"enable_thinking": prompt.thinking}
    made.thinking_budget_tokens = prompt.thinking_budget_tokens


def _num_top(prompt: Prompt) -> int | None:
    """One where none are wanted beside the token's own: asked for none, llama-server sends no log-probabilities at all."""
    return 1 if prompt.top_logprobs == 0 else prompt.top_logprobs


def _message(message: Message) -> Turn:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    return Turn(
        role=message.role,
        content=message.content,
        reasoning_content=message.reasoning or None,
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": {**function, "strict": True} if tool.strict else function}


def _tool_choice(choice: str) -> str | dict[str, Any]:
    if not choice.startswith("tool:"):
        return choice
    return {"type": "function", "function": {"name": choice.removeprefix("tool:")}}


def _response_format(schema: dict[str, Any]) -> dict[str, Any]:
    if not schema:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def embedding_body(inputs: Sequence[str | tuple[int, ...]], *, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "input": [text if isinstance(text, str) else list(text) for text in inputs],
        "encoding_format": "float",
    }
