"""The gateway as one ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.types import ControllerRouterHandler

from atlas.gateway import chat, completions, embeddings, health, messages, metrics, models, refusals, responses, tokens
from atlas.gateway.auth import Gate
from atlas.gateway.boundary import Boundary
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.errors import handle_error
from atlas.gateway.openapi import openapi_config
from atlas.gateway.policy import check_declared

ROUTES = [
    health.livez,
    health.readyz,
    metrics.metrics,
    models.list_models,
    models.get_model,
    chat.chat_completions,
    completions.completions,
    responses.responses,
    embeddings.embeddings,
    messages.messages,
    messages.count_tokens,
    tokens.tokenize,
    tokens.detokenize,
    tokens.chat_input_tokens,
    refusals.refuse_upstream,
    refusals.refuse_internal,
]


def create_app(deps: GatewayDeps, extra_routes: Sequence[ControllerRouterHandler] = ()) -> Litestar:
    """The HTTP server over `deps`, with `extra_routes` behind the same gate; it neither loads nor closes the engine.

    Raises:
        RuntimeError: a handler does not declare who may call it.
    """

    @asynccontextmanager
    async def cutting(_: Litestar) -> AsyncIterator[None]:
        task = asyncio.create_task(boundary.cut_after_drain())
        yield
        task.cancel()

    app = Litestar(
        [*ROUTES, *extra_routes],
        middleware=[Gate(deps)],
        exception_handlers={Exception: handle_error},
        lifespan=[cutting],
        cors_config=_cors(deps),
        openapi_config=openapi_config(),
        request_max_body_size=deps.server.body_limit_bytes,
        logging_config=None,
    )
    check_declared(app)
    # Around the router, so that unknown routes and wrong methods have a request id and a line in the log as well.
    boundary = Boundary(app.asgi_handler, deps)
    app.asgi_handler = boundary
    return app


def _cors(deps: GatewayDeps) -> CORSConfig | None:
    origins = list(deps.server.cors_origins)
    if not origins:
        return None
    return CORSConfig(allow_origins=origins, allow_headers=["*"], allow_methods=["GET", "POST"], expose_headers=["x-request-id"])
