"""The pages people look at: what the machine is doing, who uses it, and the switches that change it.

Server-rendered, live by server-sent events, usable without JavaScript. `create_routes` returns Litestar routes for the gateway to
serve under its own gate; each declares who may open it. A member sees their own requests, keys and budget; admins see everyone's.
Of prompts and answers only those of tasks are kept at all; they are shown to the owner of the task and to nobody else.
"""

from atlas.dashboard.deps import DashboardDeps
from atlas.dashboard.routes import create_routes

__all__ = ["DashboardDeps", "create_routes"]
