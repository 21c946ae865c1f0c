"""The gateway as one ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar import Router as HTTPRouter
from litestar.config.cors import CORSConfig
from litestar.types import ControllerRouterHandler

from atlas.gateway import (
    adapters,
    chat,
    completions,
    embeddings,
    health,
    mcp,
    messages,
    metrics,
    models,
    models_loading,
    portal_auth,
    portal_keys,
    portal_models,
    portal_usage,
    portal_users,
    refusals,
    rerank,
    responses,
    responses_kept,
    sandbox,
    tasks,
    tasks_events,
    tasks_v1,
    tokens,
    worker_route,
)
from atlas.gateway.auth import Gate
from atlas.gateway.boundary import Boundary
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.direct import DirectRoutes
from atlas.gateway.errors import handle_error
from atlas.gateway.meter import PRIORITIES
from atlas.gateway.openapi import openapi_config
from atlas.gateway.policy import check_declared
from atlas.gateway.portal import BODY_LIMIT_BYTES
from atlas.gateway.worker_route import near_workers
from atlas.gateway.workers import Workers

EXPOSED = [
    "x-request-id",
    "x-atlas-request-id",
    "x-atlas-queue-ms",
    "x-atlas-model",
    "x-atlas-fell-through",
    "retry-after",
    "retry-after-ms",
] + [f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")]

ROUTES = [
    health.livez,
    health.readyz,
    metrics.metrics,
    models.list_models,
    models.get_model,
    models_loading.list_states,
    models_loading.load_model,
    models_loading.unload_model,
    adapters.list_adapters,
    adapters.load_adapter,
    adapters.drop_adapter,
    chat.chat_completions,
    completions.completions,
    responses.responses,
    responses_kept.get_response,
    responses_kept.delete_response,
    embeddings.embeddings,
    rerank.rerank,
    messages.messages,
    messages.count_tokens,
    tokens.tokenize,
    tokens.detokenize,
    tokens.chat_input_tokens,
    sandbox.execute,
    mcp.mcp,
    tasks.submit_task,
    tasks.list_tasks,
    tasks.get_task,
    tasks.cancel_task,
    tasks.accept_task,
    tasks.task_receipt,
    tasks_events.task_events,
    tasks_v1.submit_v1,
    tasks_v1.status_v1,
    tasks_v1.queue_stats,
    worker_route.connect_worker,
    refusals.refuse_upstream,
    refusals.refuse_internal,
]

PORTAL = [
    portal_auth.register,
    portal_auth.login,
    portal_auth.refresh,
    portal_auth.logout,
    portal_auth.me,
    portal_auth.list_sessions,
    portal_auth.close_session,
    portal_auth.change_password,
    portal_auth.reset_password,
    portal_keys.list_keys,
    portal_keys.create_key,
    portal_keys.update_key,
    portal_keys.toggle_key,
    portal_keys.rotate_key,
    portal_keys.delete_key,
    portal_keys.validate_key,
    portal_usage.usage,
    portal_usage.export_usage,
    portal_usage.budget,
    portal_usage.list_requests,
    portal_usage.abort_request,
    portal_users.list_users,
    portal_users.update_user,
    portal_users.reset_user,
    portal_users.invite,
    portal_users.list_invitations,
    portal_users.withdraw_invitation,
    portal_users.audit,
    portal_models.list_catalog,
    portal_models.add_model,
    portal_models.discover_models,
    portal_models.update_model,
    portal_models.remove_model,
]


def create_app(deps: GatewayDeps, extra_routes: Sequence[ControllerRouterHandler] = ()) -> Litestar:
    """The HTTP server over `deps`, with `extra_routes` behind the same gate; it neither loads nor closes the engine.

    Raises:
        RuntimeError: a handler does not declare who may call it.
    """

    @asynccontextmanager
    async def cutting(_: Litestar) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(boundary.cut_after_drain()),
            asyncio.create_task(deps.traffic.watch()),
            asyncio.create_task(workers.drain()),
        ]
        async with near_workers(workers, deps.worker_socket):
            yield
            await workers.close()
        for task in tasks:
            task.cancel()
        await boundary.close()

    gate = Gate(deps)
    app = Litestar(
        [*ROUTES, HTTPRouter("/api", route_handlers=PORTAL, request_max_body_size=BODY_LIMIT_BYTES), *extra_routes],
        middleware=[gate],
        exception_handlers={Exception: handle_error},
        lifespan=[cutting],
        cors_config=_cors(deps),
        openapi_config=openapi_config(),
        request_max_body_size=deps.server.body_limit_bytes,
        logging_config=None,
    )
    check_declared(app)
    # Around the router, so that unknown routes and wrong methods have a request id and a line in the log as well.
    direct = DirectRoutes(app, gate, PRIORITIES, body_limit_bytes=deps.server.body_limit_bytes)
    boundary = Boundary(direct, deps)
    workers = app.state.workers = Workers(deps, boundary.meter)
    app.asgi_handler = boundary
    return app


def _cors(deps: GatewayDeps) -> CORSConfig | None:
    origins = list(deps.server.cors_origins)
    if not origins:
        return None
    return CORSConfig(allow_origins=origins, allow_headers=["*"], allow_methods=["GET", "POST"], expose_headers=EXPOSED)
