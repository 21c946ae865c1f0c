"""Which models there are, and which one a request means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from litestar import get
from litestar.params import FromPath

from atlas.engine import Engine
from atlas.errors import AtlasError, EngineUnavailable, ModelNotAllowed, ModelNotFound, ModelNotLoaded, Unsupported
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of, still_loading
from atlas.gateway.openapi import NAMING, READING, replies
from atlas.gateway.plan import Link, Plan, not_allowed
from atlas.gateway.wire import Model, ModelList, ModelMeta

ATLAS = "atlas"  # answers by having the loaded model's code run (atlas.py)


class Chosen(NamedTuple):
    """Who answers a chat; `is_proved`: and whether the answer is to be run first."""

    engine: Engine
    is_proved: bool


def choose_chat(exchange: Exchange, model: str) -> Chosen:
    """Who answers a chat with this model: `atlas` means the loaded one, and what it writes is run. Raises as `choose_engine`."""
    deps = exchange.deps
    if not is_atlas(deps, model):
        return Chosen(choose_answering(exchange, model), is_proved=False)
    check_allowed(exchange, ATLAS)
    loaded, engine = default_of(deps)
    exchange.model = loaded
    return Chosen(engine, is_proved=True)


def default_of(deps: GatewayDeps) -> tuple[str, Engine]:
    """Who answers where no model is named. Raises EngineUnavailable: none is loaded."""
    found = next(iter(deps.engines().items()), None)
    if found is None:
        raise still_loading()
    return found


def is_atlas(deps: GatewayDeps, model: str) -> bool:
    """Whether this id means tasks: where there is a journal, unless some model here has the name itself."""
    return model == ATLAS and deps.journal is not None and ATLAS not in deps.models.ids()


def choose_answering(exchange: Exchange, model: str) -> Engine:
    """Who answers for this id, or who is asked first where several may (`exchange.plan`).

    Raises:
        RemoteNotAllowed: it is on another machine, which the key's requests may not reach.
        AtlasError: as `choose_engine`, where nobody stands in.
    """
    fallback = exchange.deps.settings.fallback
    if model not in fallback.chains and model not in exchange.deps.upstreams.engines:
        return choose_engine(exchange, model)
    check_allowed(exchange, model)
    links = [_link(exchange, entry) for entry in (model, *fallback.chains.get(model, ()))]
    if not is_model(exchange.deps, model) and len(links) > 1:
        del links[0]  # a name for what follows it
    plan = Plan(model, links)
    if not plan.open():
        raise plan.failure()
    first = plan.open()[0]
    exchange.plan, exchange.model, exchange.adapter = plan, first.model, first.adapter
    assert first.engine is not None  # it is open
    return first.engine


def is_model(deps: GatewayDeps, model: str) -> bool:
    """Whether some model has this id, rather than a chain alone."""
    return model in deps.upstreams.engines or model in deps.models.ids() or model in all_adapters(deps)


def is_elsewhere(deps: GatewayDeps, model: str) -> bool:
    """Whether this id is another server's, or of a chain alone: no model of this machine has it."""
    return model in deps.upstreams.engines or (model in deps.settings.fallback.chains and not is_model(deps, model))


def _link(exchange: Exchange, model: str) -> Link:
    """One who may answer, or why they may not."""
    upstream_engine = exchange.deps.upstreams.engines.get(model)
    try:
        check_allowed(exchange, model)
        if upstream_engine is None:
            return Link(model, choose_engine(exchange, model), adapter=exchange.adapter)
    except AtlasError as error:
        return Link(model, error=error)
    finally:
        exchange.model, exchange.adapter = "", None
    upstream = upstream_engine.upstream
    is_held = not upstream.is_local and not (exchange.principal and exchange.principal.allow_remote)
    return Link(model, upstream_engine, upstream=upstream, error=not_allowed(upstream) if is_held else None)


def choose_engine(exchange: Exchange, model: str) -> Engine:
    """The engine that answers for this model id.

    Raises:
        ModelNotFound: no model of that name.
        ModelNotAllowed: the caller's key is limited to other models.
        ModelNotLoaded: it is registered, but another one is loaded.
        EngineUnavailable: nothing is loaded yet.
    """
    deps = exchange.deps
    engine = deps.engines().get(model)
    if engine is not None:  # nearly always: nothing else has to be looked at
        check_allowed(exchange, model)
        exchange.model = model
        return engine
    if (engine := engine_of_adapter(deps, model)) is not None:
        check_allowed(exchange, model)
        exchange.model, exchange.adapter = model, adapter_ids(engine)[model]
        return engine
    check_known(exchange, model)
    loaded, _ = default_of(deps)
    if is_elsewhere(deps, model):
        raise Unsupported(f"model {model!r} answers chats and completions only, here or elsewhere; use {loaded!r}", param="model")
    if is_atlas(deps, model):
        raise Unsupported(f"model {ATLAS!r} answers chats: chat completions, messages, responses; use {loaded!r}", param="model")
    if model in embedding_ids(deps):
        raise Unsupported(f"model {model!r} only makes embeddings; {loaded!r} answers", param="model")
    check_settled(deps, model)
    raise ModelNotLoaded(
        f"model {model!r} is registered, but {', '.join(map(repr, deps.engines()))} is loaded; "
        f"load it on the page Models, with `atlas models load {model}`, or start with --model {model}",
        param="model",
    )


def check_settled(deps: GatewayDeps, model: str) -> None:
    """Raises EngineUnavailable while a model comes or goes: soon it is known whether it answers."""
    state = deps.loaded.states().get(model) if deps.loaded is not None else None
    if state in ("loading", "leaving"):
        doing = "loaded" if state == "loading" else "unloaded"
        raise EngineUnavailable(f"model {model!r} is being {doing}", retry_after_s=5)


def choose_embedder(exchange: Exchange, model: str) -> Engine:
    """The engine that embeds for this id: the embedding model's, or the loaded model's. Raises as `choose_engine`."""
    deps = exchange.deps
    check_known(exchange, model)
    embedders = embedding_ids(deps)
    if not embedders:
        raise Unsupported('this server runs without an embedding model (engine.embedder = "off")', param="model")
    if engine_of_adapter(deps, model) is not None:
        raise Unsupported(f"model {model!r} answers only; embeddings are made without adapters", param="model")
    if model not in embedders:
        return choose_engine(exchange, model)
    exchange.model = model
    return embedders[model]


def check_known(exchange: Exchange, model: str) -> None:
    """Raises as `choose_engine`, where the id means nothing here, or nothing to this key."""
    default_of(exchange.deps)  # without one, whether the name is right is not known yet: a file's id comes with the engine
    ids = known_ids(exchange.deps)
    if model not in ids:
        raise unknown_model(model, ids)
    check_allowed(exchange, model)


def check_allowed(exchange: Exchange, model: str) -> None:
    """Raises ModelNotAllowed if the caller's key is limited to other models."""
    allowed = allowed_models(exchange)
    if allowed is not None and model not in allowed:
        raise ModelNotAllowed(f"this key may not use model {model!r}; it may use: {', '.join(sorted(allowed))}", param="model")


def allowed_models(exchange: Exchange) -> frozenset[str] | None:
    """Ids the caller may name; None is all."""
    return exchange.principal.models if exchange.principal else None


def unknown_model(model: str, ids: Sequence[str]) -> ModelNotFound:
    return ModelNotFound(f"model {model[:100]!r} does not exist; this server has: {', '.join(ids)}", param="model")


def adapter_ids(engine: Engine) -> dict[str, str]:
    """Names of the loaded model's adapters, by the id that asks for the model with this adapter: "model:adapter"."""
    return {f"{engine.capabilities.model}:{adapter.name}": adapter.name for adapter in engine.adapters()}


def engine_of_adapter(deps: GatewayDeps, model: str) -> Engine | None:
    """The loaded model of an adapter's id; None if it is none."""
    engine = deps.engines().get(model.rpartition(":")[0])
    return engine if engine is not None and model in adapter_ids(engine) else None


def all_adapters(deps: GatewayDeps) -> list[str]:
    return [model for engine in deps.engines().values() for model in adapter_ids(engine)]


def embedding_ids(deps: GatewayDeps) -> dict[str, Engine]:
    """Engines by what their embeddings are made with; of several the first."""
    found: dict[str, Engine] = {}
    for engine in deps.engines().values():
        if engine.capabilities.embeddings is not None:
            found.setdefault(engine.capabilities.embeddings, engine)
    return found


def known_ids(deps: GatewayDeps) -> list[str]:
    """Ids of the catalogue and of adapters, of embedding models, of chains and upstreams, and `atlas`."""
    ids = [*deps.models.ids(), *all_adapters(deps), *embedding_ids(deps), *deps.settings.fallback.chains, *deps.upstreams.engines]
    return [*dict.fromkeys(ids), *([ATLAS] if is_atlas(deps, ATLAS) else [])]


@get("/v1/models", opt={"access": "key"}, tags=["models"], summary="List the models", responses=replies(ModelList, READING))
async def list_models(request: HTTPRequest) -> ModelList:
    exchange = exchange_of(request)
    deps, allowed = exchange.deps, allowed_models(exchange)
    ids = [model_id for model_id in known_ids(deps) if allowed is None or model_id in allowed]
    return ModelList(data=[describe(deps, model_id) for model_id in ids])


@get(
    "/v1/models/{model_id:path}",
    opt={"access": "key"},
    tags=["models"],
    summary="One model, with its context length",
    responses=replies(Model, NAMING),
)
async def get_model(request: HTTPRequest, model_id: FromPath[str]) -> Model:
    exchange = exchange_of(request)
    deps = exchange.deps
    wanted = model_id.removeprefix("/")
    ids = known_ids(deps)
    if wanted not in ids:
        raise unknown_model(wanted, ids)
    check_allowed(exchange, wanted)
    return describe(deps, wanted)


def describe(deps: GatewayDeps, model_id: str) -> Model:
    """What is known of a model: of a loaded one by its engine, of the others by the catalogue."""
    engine = deps.engines().get(model_id)
    default = next(iter(deps.engines().values()), None)
    info = deps.models.info(model_id)
    model = Model(id=model_id, created=info.created if info else 0, owned_by=info.owned_by if info else "atlas", is_loaded=False)
    context_tokens = info.context_tokens if info else 0
    if engine is not None:
        what = engine.capabilities
        model.is_loaded, context_tokens = True, what.context_tokens
        model.meta = ModelMeta(
            n_ctx=what.context_tokens,
            n_vocab=what.vocab_size,
            n_params=what.num_parameters,
            size=what.size_bytes,
            architecture=what.architecture,
        )
    elif (base := engine_of_adapter(deps, model_id)) is not None:
        model.is_loaded, context_tokens, model.parent = True, base.capabilities.context_tokens, base.capabilities.model
    elif model_id in embedding_ids(deps):
        model.is_loaded = True
    elif (upstream_engine := deps.upstreams.engines.get(model_id)) is not None:
        model.is_loaded, model.owned_by = True, upstream_engine.upstream.name
    elif default is not None and is_atlas(deps, model_id):
        model.is_loaded, context_tokens = True, default.capabilities.context_tokens
    model.max_model_len = model.context_length = context_tokens or None
    return model
