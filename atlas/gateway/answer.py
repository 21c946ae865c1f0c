"""What every dialect's answers share: waiting for candidates, ending early, counting tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from atlas import __version__
from atlas.engine import Group
from atlas.errors import AtlasError, EngineFailed, EngineUnavailable
from atlas.gateway import wire
from atlas.gateway.errors import ClientClosed, note_error
from atlas.gateway.exchange import Exchange, HTTPRequest
from atlas.gateway.sse import on_disconnect
from atlas.types import Generation, TokenLogprob

FINGERPRINT = f"atlas-{__version__}"
LOWEST_LOGPROB = -9999.0  # JSON has no infinity; vLLM's choice


async def finished(request: HTTPRequest, exchange: Exchange) -> list[list[Generation]]:
    """Every candidate of every group, in order; if the client goes away the engine stops at once.

    Raises:
        EngineUnavailable: the server stops before the answer is whole.
    """
    async with on_disconnect(request, exchange.abandon):
        answers = [await group.all() for group in exchange.groups]
    for generation in exchange.generations:
        if generation.finish_reason == "abort":
            raise aborted(exchange)
    return answers


def aborted(exchange: Exchange) -> AtlasError:
    """Why an answer of ours ended before its end."""
    if exchange.outcome == ClientClosed.code:
        return ClientClosed("the client went away")
    if exchange.is_cut:
        return EngineUnavailable("the server is shutting down and has cut this answer short", retry_after_s=5)
    return EngineFailed("the engine gave this answer up before its end")


async def guarded(
    exchange: Exchange, events: AsyncIterator[bytes], *, render: Callable[[AtlasError], bytes], last: bytes = b""
) -> AsyncIterator[bytes]:
    """The events, and if they fail an error event in their place: the status line has long been sent."""
    try:
        async for chunk in events:
            yield chunk
    except Exception as error:  # whatever it is, the client has to learn that this was not the end; a defect is logged
        yield render(note_error(exchange, error))
    if last:
        yield last


def to_usage(groups: Sequence[Group]) -> wire.Usage:
    """What finished answers cost; the prompt counts once, however many candidates it has."""
    generations = [generation for group in groups for generation in group.generations]
    prompt_tokens = sum(group.prompt_tokens for group in groups)
    completion_tokens = sum(generation.num_tokens for generation in generations)
    reasoning_tokens = sum(generation.reasoning_tokens for generation in generations)
    return wire.Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=wire.PromptTokensDetails(cached_tokens=sum(group.cached_tokens for group in groups)),
        completion_tokens_details=wire.CompletionTokensDetails(reasoning_tokens=reasoning_tokens),
    )


def readable(text: bytes) -> str:
    """A token's bytes as text; half a character becomes U+FFFD (chat carries the exact bytes beside it)."""
    return text.decode("utf-8", errors="replace")


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def top_of(token: TokenLogprob) -> list[tuple[bytes, float]]:
    return [(text, finite(logprob)) for _, text, logprob in token.top]
