"""/v1/admin/models: which models are loaded; load another one beside or instead, unload one, while answers are written."""

from __future__ import annotations

import asyncio

from litestar import get, post
from litestar.params import FromPath, JSONBody

from atlas.engine import LoadedModels
from atlas.errors import Unsupported
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.models import describe
from atlas.gateway.portal import note, portal_replies
from atlas.gateway.portal_wire import Done
from atlas.gateway.wire import Model, Wire


class LoadBody(Wire):
    """`instead_of`: a loaded model that goes first, when its answers are done."""

    instead_of: str = ""


class ModelState(Wire):
    """`state`: loading, ready, asleep, waking, leaving, or registered: on this machine and not loaded."""

    id: str
    state: str


class StateList(Wire):
    models: list[ModelState]


@get(
    "/v1/admin/models",
    opt={"access": "admin"},
    tags=["models"],
    summary="Which models are loaded, and how they are",
    responses=portal_replies(StateList),
)
async def list_states(request: HTTPRequest) -> StateList:
    deps = exchange_of(request).deps
    states = deps.loaded.states() if deps.loaded is not None else dict.fromkeys(deps.engines(), "ready")
    others = [model for model in deps.models.ids() if model not in states]
    return StateList(models=[ModelState(id=model, state=states.get(model, "registered")) for model in (*states, *others)])


@post(
    "/v1/admin/models/{model_id:str}/load",
    status_code=200,
    opt={"access": "admin"},
    tags=["models"],
    summary="Load a model of this machine, beside the others or instead of one; replies when it is there",
    responses=portal_replies(Model),
)
async def load_model(request: HTTPRequest, model_id: FromPath[str], data: JSONBody[LoadBody]) -> Model:
    exchange = exchange_of(request)
    loading = _loaded(exchange).load(model_id, instead_of=data.instead_of)
    await asyncio.shield(asyncio.ensure_future(loading))  # goes on when the client does not wait for it
    await note(exchange, "model.loaded", model_id[:64])
    return describe(exchange.deps, model_id)


@post(
    "/v1/admin/models/{model_id:str}/unload",
    status_code=200,
    opt={"access": "admin"},
    tags=["models"],
    summary="Unload a model: refused to new requests at once, freed when its answers are done",
    responses=portal_replies(Done),
)
async def unload_model(request: HTTPRequest, model_id: FromPath[str]) -> Done:
    exchange = exchange_of(request)
    await asyncio.shield(asyncio.ensure_future(_loaded(exchange).unload(model_id)))
    await note(exchange, "model.unloaded", model_id[:64])
    return Done(message=f"model {model_id} is unloaded")


def _loaded(exchange: Exchange) -> LoadedModels:
    loaded = exchange.deps.loaded
    if loaded is None:
        raise Unsupported("this server loads no models while it runs", param="model_id")
    return loaded
