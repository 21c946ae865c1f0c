"""The gateway as one ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.config.cors import CORSConfig

from atlas.gateway import chat, completions, embeddings, health, messages, metrics, models, responses, tokens
from atlas.gateway.auth import Gate
from atlas.gateway.boundary import Boundary
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.errors import handle_error
from atlas.gateway.openapi import openapi_config

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
]


def create_app(deps: GatewayDeps) -> Litestar:
    """The HTTP server over `deps`; it neither loads nor closes the engine."""

    @asynccontextmanager
    async def cutting(_: Litestar) -> AsyncIterator[None]:
        task = asyncio.create_task(boundary.cut_after_drain())
        yield
        task.cancel()

    app = Litestar(
        ROUTES,
        middleware=[Gate(deps)],
        exception_handlers={Exception: handle_error},
        lifespan=[cutting],
        cors_config=_cors(deps),
        openapi_config=openapi_config(),
        request_max_body_size=deps.server.body_limit_bytes,
        logging_config=None,
    )
    # Around the router, so that unknown routes and wrong methods have a request id and a line in the log as well.
    boundary = Boundary(app.asgi_handler, deps)
    app.asgi_handler = boundary
    return app


def _cors(deps: GatewayDeps) -> CORSConfig | None:
    origins = list(deps.server.cors_origins)
    if not origins:
        return None
    return CORSConfig(allow_origins=origins, allow_headers=["*"], allow_methods=["GET", "POST"], expose_headers=["x-request-id"])
