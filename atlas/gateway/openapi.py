"""What /openapi.json says beyond the handlers' own types: errors, keys, and answers that may be streams."""

from __future__ import annotations

from dataclasses import dataclass

from litestar import MediaType
from litestar import Router as HTTPRouter
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Schema,
    SecurityRequirement,
    SecurityScheme,
)
from msgspec import Struct

from atlas import __version__
from atlas.gateway.anthropic_wire import AnthropicErrorReply
from atlas.gateway.exchange import HTTPRequest
from atlas.gateway.wire import ErrorReply, Wire

MEANINGS = {
    400: "The request is wrong; the message names the field, the value and the way out",
    401: "No key, or one that is not valid",
    403: "Known, but not permitted: the scope, role or model is missing",
    404: "No such thing, or not yours; of models the message lists those there are",
    409: "Not as things are now: another model is loaded, or a name is taken",
    413: "The body is larger than the configured limit",
    415: "The body is not plain JSON",
    429: "A limit or budget is used up, or too many attempts; Retry-After says when to try again",
    500: "The engine broke while answering",
    502: "A remote engine failed",
    503: "Loading, overloaded or shutting down; Retry-After says when to try again",
}
READING = (400, 401, 403, 503)  # what any route but the public ones may answer
NAMING = (*READING, 404)
PUBLIC: list[SecurityRequirement] = [{}]  # no key needed
POSTING = (400, 401, 403, 404, 409, 413, 415, 429, 500, 502, 503)


def replies(
    reply: type[Struct], statuses: tuple[int, ...] = POSTING, *, error: type[Struct] = ErrorReply
) -> dict[int, ResponseSpec]:
    """The documented replies of a route: its own, and its errors in the route's dialect."""
    failures = {status: ResponseSpec(error, generate_examples=False, description=MEANINGS[status]) for status in sorted(statuses)}
    return {200: ResponseSpec(reply, generate_examples=False, description="The answer")} | failures


def replies_in_text(statuses: tuple[int, ...]) -> dict[int, ResponseSpec]:
    text = ResponseSpec(str, generate_examples=False, description="The answer", media_type=MediaType.TEXT)
    return replies(ErrorReply, statuses) | {200: text}


def anthropic_replies(reply: type[Wire]) -> dict[int, ResponseSpec]:
    return replies(reply, error=AnthropicErrorReply)


@dataclass
class StreamingOperation(Operation):
    """An operation whose 200 is JSON, or events if the request says `"stream": true`."""

    def __post_init__(self) -> None:
        answer = (self.responses or {}).get("200")
        if isinstance(answer, OpenAPIResponse) and answer.content is not None:
            # No type: some readers hold the schema against the whole text, others against each event.
            answer.content["text/event-stream"] = OpenAPIMediaType(schema=Schema(description="Server-sent events"))


def openapi_config() -> OpenAPIConfig:
    """The document only: the usual pages around it load their scripts from elsewhere."""
    return OpenAPIConfig(
        title="ATLAS",
        version=__version__,
        description="A coding model server. OpenAI's and Anthropic's dialects; every answer may also be a stream.",
        openapi_router=HTTPRouter(
            "/openapi.json", route_handlers=[], opt={"access": "key"}, before_request=_exactly, include_in_schema=False
        ),
        render_plugins=[JsonRenderPlugin(path="/")],
        components=Components(
            security_schemes={
                "bearer": SecurityScheme(type="http", scheme="bearer"),
                "x-api-key": SecurityScheme(type="apiKey", name="x-api-key", security_scheme_in="header"),
            }
        ),
        security=[{"bearer": []}, {"x-api-key": []}],
    )


async def _exactly(request: HTTPRequest) -> None:
    """Litestar answers everything below its document's path with a page in HTML."""
    if request.url.path != "/openapi.json":
        raise NotFoundException
