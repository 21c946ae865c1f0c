"""The gateway as one ASGI application."""

from __future__ import annotations

from litestar import Litestar

from atlas.gateway.deps import GatewayDeps


def create_app(deps: GatewayDeps) -> Litestar:
    """The HTTP server over `deps`; it neither loads nor closes the engine."""
    return Litestar([], state=None, openapi_config=None, logging_config=None)
