"""Adapters over HTTP, with a real model: who may ask for them, who may load them, and what they are called."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest

from atlas.engine import Engine, load_engine
from atlas.gateway.tariff import Tariff
from atlas.settings import AdapterSettings, EngineSettings, Price
from atlas.store import Store
from tests import ggufs
from tests.gateway.conftest import MODEL, Running, deps_of, new_store, serving, wait_for
from tests.gateway.metered import redis
from tests.gateway.people import People, settle
from tests.gateway.tasking import new_journal, opened
from tests.store.live.conftest import Server

__all__ = ["redis"]  # a fixture

ADMIN = f"/v1/admin/models/{MODEL}/adapters"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = new_store(tmp_path_factory.mktemp("adapters") / "data")
    yield store
    store.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that may be loaded over HTTP."""
    folder = tmp_path_factory.mktemp("adapters-folder")
    for seed in (1, 2):
        shutil.copy(ggufs.calm_lora(seed), folder / f"{seed}.gguf")
    (folder / "text.gguf").write_text("not a model")
    return folder


@pytest.fixture(scope="module")
def server(store: Store, folder: Path, redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    engines: list[Engine] = []
    adapters = {"fixed": AdapterSettings(path=str(ggufs.calm_lora(3)), scale=0.5)}
    settings = EngineSettings(threads=1, context_tokens=4096, embedder="model", adapters=adapters)
    journal = new_journal(store, redis, tmp_path_factory.mktemp("journal"))
    deps = deps_of(None, store=store, journal=journal, adapter_folder=folder)
    with serving(replace(deps, engine=lambda: engines[0] if engines else None)) as running, opened(journal, running):
        loading = load_engine(ggufs.tiny_calm(), model_id=MODEL, settings=settings)
        engines.append(asyncio.run_coroutine_threadsafe(loading, running.loop).result(60))
        yield running
        asyncio.run_coroutine_threadsafe(engines[0].close(), running.loop).result(60)


@pytest.fixture(scope="module")
def people(store: Store) -> People:
    return settle(store)


@pytest.fixture
def admin(server: Running, store: Store, people: People) -> Iterator[httpx.Client]:
    """With an admin's key; what a test has loaded is dropped after it."""
    scopes = ("chat", "embeddings", "tasks", "read", "admin")
    key = store.keys.mint("admin key", owner=people.admin.id, scopes=scopes).key
    with server.http(authorization=f"Bearer {key}") as http:
        yield http
        for adapter in http.get(ADMIN).json()["adapters"]:
            if adapter["name"] != "fixed":
                assert http.delete(f"{ADMIN}/{adapter['name']}").status_code == 200


def load(admin: httpx.Client, name: str, path: str, **more: float) -> httpx.Response:
    return admin.post(ADMIN, json={"name": name, "path": path, **more})


def text_of(server: Running, model: str) -> str:
    return server.openai().completions.create(model=model, prompt="say", max_tokens=20, temperature=0).choices[0].text


def test_an_adapter_is_loaded_asked_for_by_name_and_dropped(server: Running, admin: httpx.Client) -> None:
    before = text_of(server, MODEL)
    loaded = load(admin, "py", "1.gguf", scale=1.0)
    assert loaded.status_code == 200
    assert loaded.json()["id"] == f"{MODEL}:py"
    changed = text_of(server, f"{MODEL}:py")
    assert len({before, changed, text_of(server, f"{MODEL}:fixed")}) == 3
    assert load(admin, "py", "2.gguf").status_code == 200
    assert text_of(server, f"{MODEL}:py") not in (before, changed)
    assert admin.delete(f"{ADMIN}/py").status_code == 200
    with pytest.raises(openai.NotFoundError, match="scripted:fixed"):
        text_of(server, f"{MODEL}:py")
    assert admin.delete(f"{ADMIN}/py").status_code == 404
    assert text_of(server, MODEL) == before


DIALECTS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 40},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 40},
    "/v1/responses": {"input": "hi", "max_output_tokens": 40},
    "/v1/completions": {"prompt": "say", "max_tokens": 40},
}
TEXTS = ("choices", "content", "output")  # where a dialect has its answer


def test_every_dialect_answers_with_an_adapter_under_its_name(server: Running, admin: httpx.Client) -> None:
    model = f"{MODEL}:fixed"
    for path, body in DIALECTS.items():
        plain, changed = (admin.post(path, json={"model": name, "temperature": 0, **body}).json() for name in (MODEL, model))
        assert (plain["model"], changed["model"]) == (MODEL, model)
        part = next(part for part in TEXTS if part in plain)
        assert _without_ids(plain[part]) != _without_ids(changed[part]), path
    messages = DIALECTS["/v1/chat/completions"]["messages"]
    counted = admin.post("/v1/chat/completions/input_tokens", json={"model": model, "messages": messages})
    assert counted.json()["input_tokens"] > 2
    metrics = admin.get("/metrics", headers={"via": "1.1 test"}).text
    assert f'atlas_tokens_total{{model="{model}",type="completion"}}' in metrics
    assert f'atlas_adapter_users{{adapter="fixed",model="{MODEL}"}} 0.0' in metrics


def test_models_list_adapters_with_the_model_they_belong_to(server: Running) -> None:
    listed = {model.id: model.model_extra or {} for model in server.openai().models.list().data}
    assert list(listed) == [MODEL, "other", f"{MODEL}:fixed", "calm", "atlas"]
    assert listed[f"{MODEL}:fixed"]["parent"] == MODEL
    assert listed[MODEL]["parent"] is None
    assert listed[f"{MODEL}:fixed"]["context_length"] == listed[MODEL]["context_length"]
    assert server.openai().models.retrieve(f"{MODEL}:fixed").id == f"{MODEL}:fixed"


def test_a_key_limited_to_models_names_adapters_one_by_one(server: Running, store: Store, people: People) -> None:
    owner = people.member.id
    for allowed, refused in ((MODEL, f"{MODEL}:fixed"), (f"{MODEL}:fixed", MODEL)):
        key = store.keys.mint("limited", owner=owner, models=(allowed,)).key
        with openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0) as client:
            assert [model.id for model in client.models.list().data] == [allowed]
            client.completions.create(model=allowed, prompt="x", max_tokens=1)
            with pytest.raises(openai.PermissionDeniedError, match=refused):
                client.completions.create(model=refused, prompt="x", max_tokens=1)


def test_only_files_of_the_folder_are_loaded_over_http(admin: httpx.Client, folder: Path) -> None:
    (folder / "link.gguf").symlink_to(ggufs.calm_lora(1))
    for path in (str(ggufs.calm_lora(1)), "../x.gguf", "/etc/passwd", "link.gguf"):
        reply = load(admin, "py", path)
        assert reply.status_code == 400
        assert "only files in" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"name": "py", "path": "none.gguf"}, "path", "No such file"),
        ({"name": "py", "path": "text.gguf"}, "path", "not a GGUF file"),
        ({"name": "a:b", "path": "1.gguf"}, "name", "cannot name an adapter"),
        ({"name": "py", "path": "1.gguf", "scale": 0}, "scale", "must not be 0"),
    ],
)
def test_what_cannot_be_loaded_is_named(admin: httpx.Client, body: dict[str, object], param: str, reason: str) -> None:
    reply = admin.post(ADMIN, json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert reason in reply.json()["error"]["message"]
    assert [adapter["name"] for adapter in admin.get(ADMIN).json()["adapters"]] == ["fixed"]


def test_adapters_belong_to_the_loaded_model(admin: httpx.Client) -> None:
    assert admin.get("/v1/admin/models/other/adapters").status_code == 409
    assert admin.get("/v1/admin/models/gone/adapters").status_code == 404
    assert admin.get(f"/v1/admin/models/{MODEL}:fixed/adapters").status_code == 400


def test_embeddings_and_tasks_are_not_made_with_an_adapter(admin: httpx.Client) -> None:
    model = f"{MODEL}:fixed"
    for path, body in (("/v1/embeddings", {"input": "x"}), ("/v1/tasks", {"task": "Write f(x).", "tests": "assert f(1) == 2"})):
        reply = admin.post(path, json={"model": model, **body})
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_parameter")
        assert model in reply.json()["error"]["message"]


def test_a_drop_answers_when_the_last_answer_has_ended(server: Running, admin: httpx.Client) -> None:
    assert load(admin, "py", "1.gguf").status_code == 200
    replies: list[int] = []
    with (
        server.http() as other,
        other.stream(
            "POST",
            "/v1/completions",
            json={"model": f"{MODEL}:py", "prompt": "long", "max_tokens": 3000, "temperature": 0, "stream": True},
        ) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        drop = threading.Thread(target=lambda: replies.append(admin.delete(f"{ADMIN}/py").status_code))
        drop.start()
        wait_for(lambda: _is_gone(server), 30)
        assert replies == []
        assert sum(1 for _ in lines) > 100
    drop.join(60)
    assert replies == [200]


def _without_ids(part: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in item.items() if name != "id"} for item in part]


def _is_gone(server: Running) -> bool:
    return f"{MODEL}:py" not in [model.id for model in server.openai().models.list().data]


def test_loading_and_dropping_is_in_the_audit_log(admin: httpx.Client, store: Store) -> None:
    assert load(admin, "noted", "1.gguf").status_code == 200
    assert admin.delete(f"{ADMIN}/noted").status_code == 200
    found = [change.action for change in store.audit.entries() if change.object == f"{MODEL}:noted"]
    assert sorted(found) == ["adapter.dropped", "adapter.loaded"]


def test_an_adapter_without_a_price_costs_what_its_model_costs() -> None:
    tariff = Tariff({"m": Price(prompt=1.0), "m:dear": Price(prompt=3.0)})
    costs = {model: tariff.cost(model, prompt_tokens=1000, completion_tokens=0) for model in ("m", "m:py", "m:dear", "other:py")}
    assert costs == {"m": 1000, "m:py": 1000, "m:dear": 3000, "other:py": 0}
