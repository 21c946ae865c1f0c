"""Routes that the public ATLAS V1 and V2 had, and this server refuses on purpose, by name and with the way out.

Its proxy passed every unknown path on to llama-server, whose slots, properties and adapters are the operator's affair; its
internal routes needed no key. Nothing is passed on here: what is not a route of this application does not exist.
"""

from __future__ import annotations

from litestar import route
from litestar.params import FromPath
from litestar.types import Method

from atlas.errors import NotFound
from atlas.gateway.exchange import HTTPRequest, exchange_of

METHODS: tuple[Method, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE")

# llama-server's own paths, and what to use instead
INSTEAD = {
    "/slots": "GET /api/requests lists what runs",
    "/props": "GET /v1/models/{id} has the context length",
    "/lora-adapters": "adapters are loaded by the operator",
    "/completion": "use POST /v1/completions",
    "/completions": "use POST /v1/completions",
    "/chat/completions": "use POST /v1/chat/completions",
    "/infill": "use POST /v1/completions with `suffix`",
    "/embedding": "use POST /v1/embeddings",
    "/embeddings": "use POST /v1/embeddings",
    "/rerank": "use POST /v1/rerank",
    "/reranking": "use POST /v1/rerank",
    "/apply-template": "POST /v1/chat/completions/input_tokens counts a conversation",
}


class RouteRefused(NotFound):
    """A route of V1 or llama-server that does not exist here, deliberately."""

    code = "route_refused"


@route(
    [*INSTEAD, "/slots/{rest:path}", "/lora-adapters/{rest:path}"],
    http_method=METHODS,
    opt={"access": "public"},
    include_in_schema=False,
)
async def refuse_upstream(request: HTTPRequest) -> None:
    """llama-server's paths. Public: whoever asks learns only what the documentation says."""
    path = exchange_of(request).path
    first = "/" + path.split("/")[1]
    way_out = INSTEAD.get(path.rstrip("/"), INSTEAD.get(first, ""))
    raise RouteRefused(f"{path[:100]} is refused on purpose: requests are not passed on to the model's own server; {way_out}")


@route("/internal/{rest:path}", http_method=METHODS, opt={"access": "public"}, include_in_schema=False)
async def refuse_internal(request: HTTPRequest, rest: FromPath[str]) -> None:
    """V2's unauthenticated routes behind the scenes."""
    raise RouteRefused("/internal is refused on purpose: nothing behind the scenes is reachable without a key; see /openapi.json")
