"""Is the process alive, and can it answer? The only routes without a key.

Everything an answer needs is tried anew on each call, all of it at the same time; callers that come while a trial runs share it,
so that asking often costs no more than asking once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Literal
from weakref import WeakKeyDictionary

from litestar import Response, get
from litestar.openapi import ResponseSpec
from msgspec import UNSET, UnsetType

from atlas.errors import AtlasError
from atlas.gateway.deps import GatewayDeps, Readiness
from atlas.gateway.exchange import HTTPRequest, exchange_of
from atlas.gateway.openapi import MEANINGS, PUBLIC, replies
from atlas.gateway.wire import Wire
from atlas.store import Live, Store

PROBE_TIMEOUT_S = 2.0  # Redis has one second to answer a request; chosen


class Liveness(Wire):
    status: Literal["ok"] = "ok"


class ReadinessReply(Wire):
    """`degraded` still answers, `unavailable` does not; `reasons` say what is missing.

    `sandbox`: how code that is run is isolated (native, bwrap, landlock, none), or starting, refused, unavailable. A server that
    runs no code is ready all the same.
    """

    status: Literal["loading", "ready", "degraded", "unavailable", "draining"]
    reasons: tuple[str, ...] = ()
    sandbox: str | UnsetType = UNSET


@get(
    "/livez",
    opt={"access": "public"},
    tags=["health"],
    summary="The event loop turns",
    security=PUBLIC,
    responses=replies(Liveness, (400,)),
)
async def livez() -> Liveness:
    return Liveness()


READINESS = replies(ReadinessReply, (400,)) | {
    503: ResponseSpec(ReadinessReply, generate_examples=False, description=MEANINGS[503])
}


@get(
    ["/readyz", "/health"],
    opt={"access": "public"},
    tags=["health"],
    summary="200 if requests are answered, else 503",
    security=PUBLIC,
    responses=READINESS,
)
async def readyz(request: HTTPRequest) -> Response[ReadinessReply]:
    state = await check_readiness(exchange_of(request).deps)
    reply = ReadinessReply(status=state.status, reasons=state.reasons, sandbox=state.sandbox or UNSET)
    if reply.status in ("ready", "degraded"):
        return Response(reply)
    return Response(reply, status_code=503, headers={"retry-after": "2", "retry-after-ms": "2000"})


async def check_readiness(deps: GatewayDeps) -> Readiness:
    """Whether a request would be answered now, and what stands against it."""
    if deps.draining.is_set():
        return Readiness(status="draining", reasons=("the server is shutting down",))
    probe = _probes.get(deps.store)
    if probe is None or probe.done():
        probe = _probes[deps.store] = asyncio.create_task(_probe(deps))
    troubles = await asyncio.shield(probe)
    state, sandbox = deps.readiness(), deps.sandbox_watch
    others = (*sandbox.reasons, *deps.workers.reasons, *deps.upstreams.reasons())
    if troubles and state.status in ("ready", "degraded"):
        return Readiness(status="unavailable", reasons=(*troubles, *state.reasons, *others), sandbox=sandbox.word)
    return Readiness(status=state.status, reasons=(*state.reasons, *troubles, *others), sandbox=sandbox.word)


_probes: WeakKeyDictionary[Store, asyncio.Task[tuple[str, ...]]] = WeakKeyDictionary()  # each server's latest


async def _probe(deps: GatewayDeps) -> tuple[str, ...]:
    """What metered requests need and do not have. Looks at the sandbox as well, which they can do without."""
    trials = [_trouble("the ledger", asyncio.to_thread(deps.store.check))]
    if deps.live is not None and deps.auth.mode != "off":
        trials.append(_redis_trouble(deps.live))
    found, _ = await asyncio.gather(asyncio.gather(*trials), deps.sandbox_watch.look(deps.sandbox))
    return tuple(trouble for trouble in found if trouble)


async def _redis_trouble(live: Live) -> str:
    trouble = await _trouble("Redis", live.ping())
    return f"Redis: {live.trouble}" if trouble and live.trouble else trouble


async def _trouble(name: str, trial: Awaitable[None]) -> str:
    """In a sentence; empty if it works."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await trial
    except TimeoutError:
        return f"{name} does not answer within {PROBE_TIMEOUT_S:g} s"
    except AtlasError as error:
        return f"{name}: {error.message}"
    return ""
