"""Errors as pages: what happened, and where to go from there."""

from __future__ import annotations

import math
from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from atlas.dashboard.view import bare_view, page
from atlas.errors import AtlasError, BadRequest, EngineFailed, NotFound, PayloadTooLarge

log = structlog.get_logger("atlas.dashboard")

TITLES = {
    400: "That did not work",
    401: "Sign in first",
    403: "Not yours to open",
    404: "Nothing here",
    409: "Meanwhile it changed",
}


def error_page(request: Request[Any, Any, Any], error: Exception) -> Response[str]:
    """Litestar's exception handler for every page."""
    known = known_error(error)
    view = bare_view(request)
    request.scope["state"]["exchange"].refuse(known.code)
    title = TITLES.get(known.status, "Not now" if known.status in (429, 503) else "Something broke")
    response = page(view, "error.html", status=known.status, title=title, error=known)
    if known.retry_after_s is not None:
        response.headers["retry-after"] = str(math.ceil(known.retry_after_s))
    return response


def known_error(error: Exception) -> AtlasError:
    """As one of ours; what nobody foresaw goes to the log, and not onto the page."""
    match error:
        case AtlasError():
            return error
        case HTTPException(status_code=404):
            return NotFound("there is no such page")
        case HTTPException(status_code=413):
            return PayloadTooLarge("the form is larger than 64 KiB")
        case HTTPException(status_code=status) if status < 500:
            return BadRequest(error.detail)
    log.error("page.crashed", exc_info=error)
    return EngineFailed("the server failed to make this page; its log has the reason")
