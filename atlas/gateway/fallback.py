"""A request and its plan: one after the other is asked until an answer begins, all within one deadline.

Nothing of an answer has gone to the client by then, its head included, since that names the model. What is tried next has the
share of the time left that falls to it, so that one that hangs does not use up what the others need. Once an answer has begun
nobody else is asked: its beginning may have been read and acted upon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from atlas.engine import Engine, Group
from atlas.errors import AtlasError, EngineUnavailable, RateLimited, Unavailable, Unsupported
from atlas.gateway.exchange import Exchange
from atlas.gateway.meter import MeteredRequest
from atlas.gateway.plan import PASSES_ON, Link, Plan
from atlas.gateway.sse import on_disconnect
from atlas.types import Prompt

log = structlog.get_logger("atlas.gateway")


async def submit(exchange: Exchange, engine: Engine, *prompts: Prompt, is_streamed: bool) -> None:
    """Have prompts answered by `engine`, or as the exchange's plan says if it has one: then an answer has begun on return.

    Raises:
        AtlasError: as `Exchange.submit`; of a plan, what stood against its first, with what became of the others.
    """
    if exchange.plan is None:
        await exchange.submit(engine, *prompts, is_streamed=is_streamed)
        return
    metered = exchange.open_meter(is_streamed=is_streamed, is_watched=True)
    assert exchange.receive is not None  # it is not over
    with on_disconnect(exchange.receive, exchange.abandon):
        await exchange.settling_failures(_follow(exchange, exchange.plan, metered, prompts))


async def _follow(exchange: Exchange, plan: Plan, metered: MeteredRequest, prompts: Sequence[Prompt]) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + exchange.deps.settings.fallback.deadline_s
    if any(_speaks_in_tokens(prompt) for prompt in prompts):
        _hold_to_its_tokenizer(plan)
    has_others = len(plan.open()) > 1
    while links := plan.open():
        link = links[0]
        exchange.model, exchange.adapter = link.model, link.adapter
        patience_s = max(0.0, end_s - loop.time()) / len(links) if has_others else None
        link.error = await _try(exchange, metered, link, prompts, patience_s=patience_s)
        if link.error is None and metered.groups:
            plan.is_begun = True
            exchange.meter.fallbacks[plan.asked, link.model] += link is not plan.links[0]
            return
        metered.withdraw()
        if link.error is None:  # nobody waits any more
            return
        log.info("request.passed_on", usage_id=metered.id, model=link.model, reason=link.error.code)
    raise plan.failure()


async def _try(
    exchange: Exchange, metered: MeteredRequest, link: Link, prompts: Sequence[Prompt], *, patience_s: float | None
) -> AtlasError | None:
    """Why this one does not answer; None once its answer has begun, or when nobody waits for it any more.

    Raises:
        AtlasError: what no other model would mend.
    """
    assert link.engine is not None  # only open links are tried
    if link.upstream is not None and (refusal := link.upstream.refusal()) is not None:
        return refusal
    model = link.engine.capabilities.model
    mine = [replace(prompt, model=model, adapter=link.adapter) for prompt in prompts]
    try:
        await metered.prepare(link.engine, mine, model=link.model)
        error = await _begun_in_time(exchange, metered, link, patience_s)
    except AtlasError as raised:
        if not _may_pass_on(raised, metered, is_first=link is exchange.plan_of().links[0]):
            raise
        error = raised
    if error is None and link.upstream is not None and metered.groups:
        link.upstream.note_begun()
    return error


async def _begun_in_time(exchange: Exchange, metered: MeteredRequest, link: Link, patience_s: float | None) -> AtlasError | None:
    """Raises what the engine, or the queue before it, has against the prompts."""
    trying = metered.work = asyncio.create_task(_begin(metered))
    try:
        await asyncio.wait({trying}, timeout=patience_s)
    finally:
        if not trying.done():
            trying.cancel()
    if await _is_cancelled(trying):
        if exchange.is_over or metered.aborted_by or patience_s is None:
            return None
        if link.upstream is not None:
            link.upstream.note_silent()
        return EngineUnavailable(f"model {link.model!r} has not begun to answer within {patience_s:.1f} s", retry_after_s=1.0)
    return None


async def _begin(metered: MeteredRequest) -> None:
    """Done when the first of an answer is there."""
    await metered.begin()
    await begun(metered.groups)


async def begun(groups: Sequence[Group]) -> None:
    """Wait for the first of what any of these says. Raises what made one fail before that."""
    if not groups:
        return
    waiting = [asyncio.ensure_future(group.begun()) for group in groups]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        errors = [task.exception() for task in done]
        if (error := errors[0]) is not None and None not in errors:
            raise error
    finally:
        for task in waiting:
            task.cancel()


async def _is_cancelled(trying: asyncio.Task[None]) -> bool:
    """Whether it was ended from here; raises what it has raised."""
    try:
        await trying
    except asyncio.CancelledError:
        if not trying.cancelled():
            raise
        return True
    return False


def _may_pass_on(error: AtlasError, metered: MeteredRequest, *, is_first: bool) -> bool:
    """What the first one refuses is the client's affair. What a stand-in cannot do, or costs too much, says nothing of others."""
    if isinstance(error, PASSES_ON):
        return True
    if isinstance(error, Unavailable) or (isinstance(error, RateLimited) and not metered.charge.is_reserved):
        return False  # nothing can be paid for, whoever answers
    return not is_first


def _speaks_in_tokens(prompt: Prompt) -> bool:
    return prompt.tokens is not None or any(sampling.logit_bias for sampling in prompt.sampling)


def _hold_to_its_tokenizer(plan: Plan) -> None:
    """Ids of tokens mean something else to another model."""
    for link in plan.open():
        if link.model != plan.asked:
            link.error = Unsupported("token ids (a prompt of tokens, logit_bias) are sent to the model that was named only")
