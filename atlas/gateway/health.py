"""Is the process alive, and can it answer? The only routes without a key."""

from __future__ import annotations

from typing import Literal

from litestar import Response, get
from litestar.openapi import ResponseSpec

from atlas.gateway.exchange import HTTPRequest, exchange_of
from atlas.gateway.openapi import MEANINGS, PUBLIC, replies
from atlas.gateway.wire import Wire


class Liveness(Wire):
    status: Literal["ok"] = "ok"


class ReadinessReply(Wire):
    """`degraded` still answers; `reasons` say what is missing."""

    status: Literal["loading", "ready", "degraded", "draining"]
    reasons: tuple[str, ...] = ()


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
    deps = exchange_of(request).deps
    if deps.draining.is_set():
        reply = ReadinessReply(status="draining", reasons=("the server is shutting down",))
    else:
        state = deps.readiness()
        reply = ReadinessReply(status=state.status, reasons=state.reasons)
    if reply.status in ("ready", "degraded"):
        return Response(reply)
    return Response(reply, status_code=503, headers={"retry-after": "2", "retry-after-ms": "2000"})
