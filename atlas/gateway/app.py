"""The gateway as one ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar import Router as HTTPRouter
from litestar.config.cors import CORSConfig
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from atlas import __version__
from atlas.gateway import chat, completions, embeddings, health, messages, models, tokens
from atlas.gateway.auth import Gate
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.errors import handle_error
from atlas.gateway.exchange import Exchanges, HTTPRequest

ROUTES = [
    health.livez,
    health.readyz,
    models.list_models,
    models.get_model,
    chat.chat_completions,
    completions.completions,
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
        task = asyncio.create_task(exchanges.cut_after_drain())
        yield
        task.cancel()

    app = Litestar(
        ROUTES,
        middleware=[Gate(deps)],
        exception_handlers={Exception: handle_error},
        lifespan=[cutting],
        cors_config=_cors(deps),
        openapi_config=_openapi(),
        request_max_body_size=deps.server.body_limit_bytes,
        logging_config=None,
    )
    # Around the router, so that unknown routes and wrong methods have a request id and a line in the log as well.
    exchanges = Exchanges(app.asgi_handler, deps)
    app.asgi_handler = exchanges
    return app


def _cors(deps: GatewayDeps) -> CORSConfig | None:
    origins = list(deps.server.cors_origins)
    if not origins:
        return None
    return CORSConfig(allow_origins=origins, allow_headers=["*"], allow_methods=["GET", "POST"], expose_headers=["x-request-id"])


def _openapi() -> OpenAPIConfig:
    """The document only: the usual pages around it load their scripts from elsewhere."""
    router = HTTPRouter("/openapi.json", route_handlers=[], before_request=_exactly, include_in_schema=False)
    return OpenAPIConfig(title="ATLAS", version=__version__, openapi_router=router, render_plugins=[JsonRenderPlugin(path="/")])


async def _exactly(request: HTTPRequest) -> None:
    """Litestar answers everything below its document's path with a page in HTML."""
    if request.url.path != "/openapi.json":
        raise NotFoundException
