"""/v1/admin/models/{model}/adapters: LoRA adapters of the loaded model, loaded and dropped while it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from litestar import delete, get, post
from litestar.params import FromPath, JSONBody
from msgspec import Meta

from atlas.engine import Engine
from atlas.errors import BadRequest, ModelFileError, Unsupported
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.models import choose_engine
from atlas.gateway.portal import note, portal_replies
from atlas.gateway.portal_wire import Done
from atlas.gateway.wire import Wire
from atlas.types import AdapterInfo


class AdapterBody(Wire):
    """`path`: of a file in the folder `adapters` of the data directory, named from there."""

    name: Annotated[str, Meta(max_length=63)]
    path: Annotated[str, Meta(min_length=1, max_length=1024)]
    scale: float = 1.0


class AdapterReply(Wire):
    """`id` is what requests name as their model; `num_users`: prompts that have it and are not answered yet."""

    id: str
    name: str
    path: str
    scale: float
    num_users: int


class AdapterList(Wire):
    adapters: list[AdapterReply]


@get(
    "/v1/admin/models/{model_id:str}/adapters",
    opt={"access": "admin"},
    tags=["models"],
    summary="The adapters of the loaded model",
    responses=portal_replies(AdapterList),
)
async def list_adapters(request: HTTPRequest, model_id: FromPath[str]) -> AdapterList:
    engine = _engine(exchange_of(request), model_id)
    return AdapterList(adapters=[_reply(engine, adapter) for adapter in engine.adapters()])


@post(
    "/v1/admin/models/{model_id:str}/adapters",
    status_code=200,
    opt={"access": "admin"},
    tags=["models"],
    summary="Load an adapter; one of that name is replaced for new requests",
    responses=portal_replies(AdapterReply),
)
async def load_adapter(request: HTTPRequest, model_id: FromPath[str], data: JSONBody[AdapterBody]) -> AdapterReply:
    exchange = exchange_of(request)
    engine = _engine(exchange, model_id)
    try:
        adapter = await engine.load_adapter(data.name, _file(exchange, data.path), scale=data.scale)
    except ModelFileError as error:
        raise BadRequest(error.message, param="path") from None
    reply = _reply(engine, adapter)
    await note(exchange, "adapter.loaded", reply.id)
    return reply


@delete(
    "/v1/admin/models/{model_id:str}/adapters/{name:str}",
    status_code=200,
    opt={"access": "admin"},
    tags=["models"],
    summary="Drop an adapter: refused to new requests at once, freed when those that have it are answered",
    responses=portal_replies(Done),
)
async def drop_adapter(request: HTTPRequest, model_id: FromPath[str], name: FromPath[str]) -> Done:
    exchange = exchange_of(request)
    engine = _engine(exchange, model_id)
    await engine.drop_adapter(name)
    dropped = f"{engine.capabilities.model}:{name}"
    await note(exchange, "adapter.dropped", dropped)
    return Done(message=f"adapter {dropped} is dropped")


def _engine(exchange: Exchange, model_id: str) -> Engine:
    """The loaded model's. Raises as `choose_engine`, and Unsupported for the id of an adapter."""
    engine = choose_engine(exchange, model_id)
    if exchange.adapter is not None:
        raise Unsupported(f"{model_id!r} is an adapter; adapters belong to {engine.capabilities.model!r}", param="model_id")
    return engine


def _file(exchange: Exchange, path: str) -> Path:
    """The file that is meant: whoever has an admin's key cannot ask what else lies on this machine.

    Raises:
        BadRequest: it lies elsewhere.
    """
    folder = exchange.deps.adapter_folder
    if folder is None:
        raise Unsupported("adapters are not loaded over HTTP here; name them in engine.adapters", param="path")
    found = (folder / path).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise BadRequest(f"path: only files in {folder} are loaded over HTTP; others are named in engine.adapters", param="path")
    return found


def _reply(engine: Engine, adapter: AdapterInfo) -> AdapterReply:
    return AdapterReply(
        id=f"{engine.capabilities.model}:{adapter.name}",
        name=adapter.name,
        path=adapter.path,
        scale=adapter.scale,
        num_users=adapter.num_users,
    )
