"""The one place where errors become JSON, in the dialect of the route that was called."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)

from atlas.errors import AtlasError, BadRequest, ContextLengthExceeded, EngineFailed, NotFound, PayloadTooLarge
from atlas.gateway.anthropic_wire import AnthropicError, AnthropicErrorReply
from atlas.gateway.exchange import Exchange, exchange_of
from atlas.gateway.sse import event
from atlas.gateway.wire import ErrorBody, ErrorReply

log = structlog.get_logger("atlas.gateway")

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
RETRY_AFTER_S = 1.0  # when the error names none; chosen, unmeasured


class MethodNotAllowed(AtlasError):
    """The route exists, but not for this method."""

    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"


class UnsupportedMediaType(AtlasError):
    """The body is not plain JSON."""

    status = 415
    code = "unsupported_media_type"
    type = "invalid_request_error"


class ClientClosed(AtlasError):
    """The client went away before its answer; nobody reads this. nginx's status, so that it does not count as our failure."""

    status = 499
    code = "disconnected"
    type = "invalid_request_error"


class RequestAborted(AtlasError):
    """Somebody who may has ended the request. Not a status that clients retry."""

    status = 403
    code = "request_aborted"
    type = "permission_error"


class PreviousResponseNotFound(BadRequest):
    """The answer that a request goes on from is not kept; OpenAI's code."""

    code = "previous_response_not_found"


class HostNotAllowed(BadRequest):
    """The Host header names a machine we do not answer for."""

    code = "host_not_allowed"


def to_atlas_error(error: Exception, exchange: Exchange) -> AtlasError:
    """The error as one of ours; what nobody foresaw becomes `EngineFailed` without its text."""
    match error:
        case AtlasError():
            return error if exchange.plan is None else exchange.plan.broken_off(error)
        case HTTPException(status_code=status) if status < 500:
            return _protocol_error(error, exchange)
        case RecursionError() if not exchange.model:  # still in the body's decoder
            return BadRequest("the body is nested too deeply")
        case UnicodeDecodeError() if not exchange.model:  # msgspec's, for a string; its other faults are ValidationExceptions
            return BadRequest("the body is not UTF-8")
    return EngineFailed("the server failed while answering; its log has the reason under this request id")


def _protocol_error(error: HTTPException, exchange: Exchange) -> AtlasError:
    """What the framework found wrong before a handler ran."""
    match error:
        case ValidationException():
            return _validation(error)
        case NotFoundException():
            return NotFound(f"no route {exchange.method} {exchange.path[:200]}; /openapi.json lists them all")
        case MethodNotAllowedException():
            return MethodNotAllowed(f"{exchange.path} does not take {exchange.method}")
        case HTTPException(status_code=413):
            return PayloadTooLarge("the body is larger than server.body_limit_bytes allows")
    return BadRequest(error.detail)


def openai_reply(error: AtlasError) -> ErrorReply:
    return ErrorReply(error=ErrorBody(message=error.message, type=error.type, param=error.param, code=error.code))


def anthropic_reply(error: AtlasError, request_id: str) -> AnthropicErrorReply:
    kind = ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    # Claude Code shortens its conversation when it reads these words.
    prefix = "prompt is too long: " if isinstance(error, ContextLengthExceeded) else ""
    return AnthropicErrorReply(error=AnthropicError(type=kind, message=prefix + error.message), request_id=request_id)


def error_event(error: AtlasError) -> bytes:
    """The last event of an OpenAI stream that failed."""
    return event(openai_reply(error))


def error_headers(error: AtlasError) -> dict[str, str]:
    """Retry-After on every 429 and 503; 409 would be retried by clients although nothing changes by itself."""
    if error.status == 409:
        return {"x-should-retry": "false"}
    if error.status not in (429, 503):
        return {}
    wait_s = RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
    return {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}


def note_error(exchange: Exchange, error: Exception) -> AtlasError:
    """The error as one of ours, noted in the exchange; one that nobody foresaw goes to the log with its traceback."""
    known = to_atlas_error(error, exchange)
    exchange.refuse(known.code)
    if known.status >= 500 and not isinstance(error, AtlasError) and exchange.crash is not error:
        exchange.crash = error
        log.error("request.crashed", exc_info=error)
    return known


def handle_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's exception handler for everything."""
    exchange = exchange_of(request)
    known = note_error(exchange, error)
    is_anthropic = request.url.path.startswith("/v1/messages")
    reply = anthropic_reply(known, exchange.request_id) if is_anthropic else openai_reply(known)
    headers = error_headers(known) | _allow(error)
    return Response(msgspec.json.encode(reply), status_code=known.status, headers=headers, media_type="application/json")


def _allow(error: Exception) -> dict[str, str]:
    headers = error.headers if isinstance(error, MethodNotAllowedException) else None
    return {"allow": headers["allow"]} if headers and "allow" in headers else {}


def _validation(error: ValidationException) -> BadRequest:
    """Msgspec's own words, and the path of the field they are about."""
    extra = error.extra if isinstance(error.extra, list) else []
    first: dict[str, Any] = extra[0] if extra and isinstance(extra[0], dict) else {}
    key = first.get("key")
    if key == "data" and first.get("message") == "'data'":
        return BadRequest("the body is empty; send a JSON object")
    if not first:
        return BadRequest(error.detail)
    field = None if key in (None, "data") else str(key)
    where = f"{field}: " if field else "body: "
    return BadRequest(where + str(first.get("message", "invalid")), param=field)
