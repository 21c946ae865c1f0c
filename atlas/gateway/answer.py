"""What every dialect's answers share: waiting for candidates, ending early, counting tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from atlas import __version__
from atlas.engine import Group
from atlas.errors import AtlasError, EngineFailed, EngineUnavailable
from atlas.gateway import wire
from atlas.gateway.errors import ClientClosed, RequestAborted, note_error
from atlas.gateway.exchange import Exchange, HTTPRequest
from atlas.gateway.sse import on_disconnect
from atlas.types import Delta, Generation, TokenLogprob

FINGERPRINT = f"atlas-{__version__}"
LOWEST_LOGPROB = -9999.0  # JSON has no infinity; vLLM's choice


async def finished(request: HTTPRequest, exchange: Exchange) -> list[list[Generation]]:
    """Every candidate of every group, in order, once they are paid for; if the client goes away the engine stops at once.

    Raises:
        AtlasError: there is no whole answer, or it could not be settled.
    """
    with on_disconnect(request.receive, exchange.abandon):
        try:
            answers = await _all(exchange)
        except Exception as error:
            note_error(exchange, error)
            await exchange.settle()
            raise
        await exchange.settle()
        return answers


async def _all(exchange: Exchange) -> list[list[Generation]]:
    if not await exchange.started():
        raise aborted(exchange)
    answers = [await group.all() for group in exchange.groups]
    if any(generation.finish_reason == "abort" for generation in exchange.generations):
        raise aborted(exchange)
    return answers


async def deltas(exchange: Exchange) -> AsyncIterator[tuple[int, Delta]]:
    """(position of the group, Delta) as they come, after the queue; the last one once everything is paid for.

    Raises:
        AtlasError: the answer ends before its end, or it could not be settled.
    """
    if not await exchange.started():
        raise aborted(exchange)
    num_open = sum(group.num_candidates for group in exchange.groups)
    async for position, delta in merged(exchange.groups):
        if delta.finish_reason is not None:
            if delta.finish_reason == "abort":
                raise aborted(exchange)
            num_open -= 1
            if not num_open:
                await asyncio.gather(*(group.all() for group in exchange.groups if not group.is_done))
                await exchange.settle()
        yield position, delta


async def merged(groups: Sequence[Group]) -> AsyncIterator[tuple[int, Delta]]:
    """The deltas of all groups as they come. Raises what made a group fail."""
    if len(groups) == 1:
        async for delta in groups[0]:
            yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta] | None] = asyncio.Queue()  # None: one group has nothing more
    pumps = [asyncio.create_task(_pump(group, position, queue)) for position, group in enumerate(groups)]
    left = len(pumps)
    try:
        while left:
            item = await queue.get()
            if item is not None:
                yield item
            left -= item is None
        await asyncio.gather(*pumps)  # raises what a group failed with
    finally:
        for pump in pumps:
            pump.cancel()


async def _pump(group: Group, position: int, queue: asyncio.Queue[tuple[int, Delta] | None]) -> None:
    try:
        async for delta in group:
            queue.put_nowait((position, delta))
    finally:
        queue.put_nowait(None)


def aborted(exchange: Exchange) -> AtlasError:
    """Why an answer of ours ended before its end."""
    if exchange.metered is not None and exchange.metered.aborted_by:
        return RequestAborted("this request was ended on the server, by its user or an administrator")
    if exchange.outcome == ClientClosed.code:
        return ClientClosed("the client went away")
    if exchange.is_cut:
        return EngineUnavailable("the server is shutting down and has cut this answer short", retry_after_s=5)
    return EngineFailed("the engine gave this answer up before its end")


async def guarded(
    exchange: Exchange, events: AsyncIterator[bytes], *, render: Callable[[AtlasError], bytes], last: bytes = b""
) -> AsyncGenerator[bytes, None]:
    """The events, and if they fail an error event in their place: the status line has long been sent."""
    try:
        async for chunk in events:
            yield chunk
    except Exception as error:  # whatever it is, the client has to learn that this was not the end; a defect is logged
        yield render(await _settled_error(exchange, error))
    if last:
        yield last


async def _settled_error(exchange: Exchange, error: Exception) -> AtlasError:
    """The error as one of ours, once what was used until then is paid for."""
    known = note_error(exchange, error)
    try:
        await exchange.settle()
    except AtlasError as unsettled:
        return note_error(exchange, unsettled)
    return known


def to_usage(groups: Sequence[Group]) -> wire.Usage:
    """What finished answers cost; the prompt counts once, however many candidates it has."""
    prompt_tokens = completion_tokens = cached_tokens = reasoning_tokens = 0
    for group in groups:
        prompt_tokens += group.prompt_tokens
        completion_tokens += group.completion_tokens  # as it is charged
        cached_tokens += group.cached_tokens
        for generation in group.generations:
            reasoning_tokens += generation.reasoning_tokens
    return wire.Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=wire.PromptTokensDetails(cached_tokens=cached_tokens),
        completion_tokens_details=wire.CompletionTokensDetails(reasoning_tokens=reasoning_tokens),
    )


def readable(text: bytes) -> str:
    """A token's bytes as text; half a character becomes U+FFFD (chat carries the exact bytes beside it)."""
    return text.decode("utf-8", errors="replace")


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def top_of(token: TokenLogprob) -> list[tuple[bytes, float]]:
    return [(text, finite(logprob)) for _, text, logprob in token.top]
