"""/api/admin/models: V1's catalogue, to read. What V1 let be edited follows from the model's file here: refused by name."""

from __future__ import annotations

from typing import Literal

from litestar import delete, get, patch, post
from litestar.params import FromPath

from atlas.errors import Unsupported
from atlas.gateway.exchange import HTTPRequest, exchange_of
from atlas.gateway.models import describe, known_ids
from atlas.gateway.portal import portal_replies
from atlas.gateway.portal_wire import Done
from atlas.gateway.wire import Wire


class CatalogEntry(Wire):
    """V1's fields. `context_length` is null until the model has been loaded; `is_active`: it is loaded now."""

    model_id: str
    name: str
    context_length: int | None
    max_output: int | None
    is_active: bool
    is_auto_discovered: bool
    source_server: Literal["local", "remote"]


class CatalogReply(Wire):
    models: list[CatalogEntry]
    total: int


@get(
    "/admin/models",
    opt={"access": "admin"},
    tags=["models"],
    summary="The models of this server, as V1 described them",
    responses=portal_replies(CatalogReply),
)
async def list_catalog(request: HTTPRequest) -> CatalogReply:
    deps = exchange_of(request).deps
    models = [describe(deps, model_id) for model_id in known_ids(deps)]
    entries = [
        CatalogEntry(
            model_id=model.id,
            name=model.id,
            context_length=model.context_length,
            max_output=min(model.context_length, deps.settings.engine.max_tokens) if model.context_length else None,
            is_active=model.is_loaded,
            is_auto_discovered=True,
            source_server="remote" if deps.settings.remote.url else "local",
        )
        for model in models
    ]
    return CatalogReply(models=entries, total=len(entries))


@post(
    "/admin/models",
    status_code=200,
    opt={"access": "admin"},
    tags=["models"],
    summary="Refused: models are files of this machine",
    responses=portal_replies(Done),
)
async def add_model() -> Done:
    raise Unsupported("models are added by file or download, not by name: `atlas models add FILE` or `atlas models pull NAME`")


@post(
    "/admin/models/discover",
    status_code=200,
    opt={"access": "admin"},
    tags=["models"],
    summary="Refused: the server asks no address that a client names",
    responses=portal_replies(Done),
)
async def discover_models() -> Done:
    raise Unsupported("this server asks no address that a client names; set remote.url and start it again")


@patch(
    "/admin/models/{model_id:path}",
    status_code=200,
    opt={"access": "admin"},
    tags=["models"],
    summary="Refused: what a model can do is not a matter of settings",
    responses=portal_replies(Done),
)
async def update_model(model_id: FromPath[str]) -> Done:
    raise Unsupported(
        f"{model_id[1:100]}: its context follows from the file and engine.context_tokens, its output from engine.max_tokens"
    )


@delete(
    "/admin/models/{model_id:path}",
    status_code=200,
    opt={"access": "admin"},
    tags=["models"],
    summary="Refused: files are removed on this machine",
    responses=portal_replies(Done),
)
async def remove_model(model_id: FromPath[str]) -> Done:
    raise Unsupported(f"{model_id[1:100]}: a model is removed on the server's machine: `atlas models remove NAME`")
