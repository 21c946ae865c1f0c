"""Every route of the dashboard, with who may open it."""

from __future__ import annotations

from collections.abc import Sequence

from litestar import Router
from litestar.types import ControllerRouterHandler

from atlas.dashboard import (
    activity,
    assets,
    audit,
    benches,
    events,
    keys,
    logs,
    models,
    overview,
    playground,
    profile,
    sandbox,
    signin,
    tasks,
    theme,
    usage,
    users,
    values,
)
from atlas.dashboard.deps import DashboardDeps
from atlas.dashboard.failures import error_page

FORM_LIMIT_BYTES = 64 * 1024

HANDLERS = (
    signin.signin_page,
    signin.signin,
    signin.signout,
    signin.setup_page,
    signin.setup,
    signin.register_page,
    signin.register,
    signin.reset_page,
    signin.reset,
    overview.overview,
    activity.activity,
    activity.one_request,
    activity.abort,
    tasks.tasks,
    tasks.one_task,
    tasks.cancel,
    tasks.accept,
    tasks.receipt,
    benches.benches,
    benches.one_bench,
    usage.usage,
    usage.export,
    models.models,
    models.pull,
    models.remove,
    models.load,
    models.unload,
    sandbox.sandbox,
    keys.keys,
    keys.create,
    keys.one_key,
    keys.update,
    keys.rotate,
    keys.switch,
    users.users,
    users.invite,
    users.withdraw,
    users.one_user,
    users.update,
    users.reset,
    users.switch,
    playground.playground,
    playground.playground_key,
    logs.logs,
    values.settings,
    audit.audit,
    profile.profile,
    profile.password,
    profile.close_others,
    profile.close_session,
    events.events,
    assets.asset,
    theme.theme,
)


def create_routes(deps: DashboardDeps) -> Sequence[ControllerRouterHandler]:
    """Routes for `create_app(..., extra_routes=...)`; `opt["access"]` of each says who may open it."""
    router = Router(
        path="/",
        route_handlers=list(HANDLERS),
        opt={"dashboard": lambda: deps},  # Litestar copies routers deeply, and leaves functions as they are
        exception_handlers={Exception: error_page},
        request_max_body_size=FORM_LIMIT_BYTES,
        include_in_schema=False,
    )
    return [router]
