"""Models that come, go, sleep and are woken while requests are answered; what a client sees of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from atlas.engine import Engine, LoadedModels, ModelRegistry, ScriptedEngine
from atlas.gateway import ModelInfo, Readiness
from atlas.launch import ModelChoice
from atlas.settings import EngineSettings
from atlas.store import Store
from tests import ggufs
from tests.gateway.conftest import Running, deps_of, new_store, serving, wait_for

HI = [{"role": "user", "content": "hi"}]


@dataclass
class Models:
    """`first` is loaded, `second` on this machine: real files, read for their size; scripts answer in their place."""

    loaded: LoadedModels
    registry: ModelRegistry

    def loaded_id(self) -> str | None:
        return next(iter(self.loaded.engines()), None)

    def ids(self) -> Sequence[str]:
        return list(dict.fromkeys([*self.loaded.engines(), *self.registry.installed()]))

    def info(self, model_id: str) -> ModelInfo | None:
        return ModelInfo(id=model_id)


@dataclass
class Server:
    running: Running
    loaded: LoadedModels
    store: Store
    key: str  # an admin's
    gate: threading.Event  # nothing is made while it is shut

    def http(self, key: str = "") -> httpx.Client:
        return self.running.http(authorization=f"Bearer {key or self.key}")

    def chat(self, model: str, **body: Any) -> httpx.Response:
        with self.http() as http:
            return http.post("/v1/chat/completions", json={"model": model, "messages": HI, **body})

    def post(self, path: str, **body: Any) -> httpx.Response:
        with self.http() as http:
            return http.post(f"/v1/admin/models/{path}", json=body)

    def states(self) -> dict[str, str]:
        with self.http() as http:
            return {model["id"]: model["state"] for model in http.get("/v1/admin/models").json()["models"]}


@contextmanager
def serving_models(folder: Path, *, sleep_after_s: float = 0.0, delay_s: float = 0.0) -> Iterator[Server]:
    gate = threading.Event()
    gate.set()

    async def make(choice: ModelChoice, _settings: EngineSettings) -> Engine:
        await asyncio.to_thread(gate.wait, 60)
        return ScriptedEngine([f"I am {choice.id}. " + "word " * 200], model=choice.id, delay_s=delay_s)

    settings = EngineSettings(context_tokens=512, sleep_after_s=sleep_after_s)
    registry = ModelRegistry(folder / "models")
    registry.add(ggufs.tiny_random(), name="first")
    registry.add(ggufs.tiny_calm(), name="second")
    loaded = LoadedModels(settings, find=registry.find, make=make)
    store = new_store(folder / "data")
    here = Models(loaded, registry)
    deps = replace(
        deps_of(None, store=store),
        engine=lambda: loaded.default,
        loaded=loaded,
        models=here,
        readiness=lambda: Readiness(status="ready", reasons=loaded.reasons()),
    )
    with serving(deps) as running:

        async def begin() -> None:
            choice = registry.find("first")
            loaded.begin(await make(choice, settings), lambda: make(choice, settings), Path(choice.path))

        asyncio.run_coroutine_threadsafe(begin(), running.loop).result(20)
        yield Server(running, loaded, store, store.keys.mint("admin", scopes=("chat", "admin", "read")).key, gate)
        gate.set()
        asyncio.run_coroutine_threadsafe(loaded.close(), running.loop).result(20)
    store.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving_models(tmp_path, delay_s=0.005) as opened:
        yield opened


def says(reply: httpx.Response) -> str:
    content: str = reply.json()["choices"][0]["message"]["content"]
    return content[:12].strip()


def test_a_second_model_is_loaded_beside_the_first_and_each_answers_by_its_name(server: Server) -> None:
    refused = server.chat("second")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_not_loaded")
    assert "`atlas models load second`" in refused.json()["error"]["message"]
    made = server.post("second/load")
    assert (made.status_code, made.json()["id"]) == (200, "second")
    assert server.states() == {"first": "ready", "second": "ready", "nano": "registered"}
    for model in ("first", "second"):
        reply = server.chat(model, max_tokens=5)
        assert (says(reply), reply.headers["x-atlas-model"]) == (f"I am {model}."[:12].strip(), model)
    with server.http() as http:
        metrics = http.get("/metrics").text
    assert metrics.count("# TYPE atlas_requests_running gauge") == 1
    assert 'atlas_requests_running{model="second"}' in metrics
    assert [entry.action for entry in server.store.audit.entries(1)] == ["model.loaded"]


def test_tasks_are_solved_with_the_model_that_was_loaded_first(server: Server) -> None:
    assert server.post("second/load").status_code == 200
    with server.http(server.store.keys.mint("tasks", scopes=("tasks",)).key) as http:
        refused = http.post("/v1/tasks", json={"task": "Add two numbers.", "model": "second"})
    assert refused.status_code == 400
    assert "tasks are solved with 'first'" in refused.json()["error"]["message"]


def test_a_model_that_goes_ends_its_answers_and_refuses_others_with_the_time_to_come_back(server: Server) -> None:
    server.post("second/load")
    with ThreadPoolExecutor(2) as threads:
        answering = threads.submit(server.chat, "first", max_tokens=200)
        wait_for(lambda: bool(server.running.deps.traffic.open()))
        wait_for(lambda: server.loaded.engines()["first"].stats().num_running == 1)
        unloading = threads.submit(server.post, "first/unload")
        wait_for(lambda: server.states()["first"] == "leaving")
        refused = server.chat("first")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert says(server.chat("second", max_tokens=5)).startswith("I am second"[:12])
        assert answering.result(60).json()["choices"][0]["finish_reason"] == "length"
        assert unloading.result(60).json()["message"] == "model first is unloaded"
    assert server.chat("first").status_code == 409
    assert server.post("first/unload").status_code == 404


def test_one_model_takes_the_place_of_another_and_claude_means_the_one_that_is_there(server: Server) -> None:
    assert server.post("second/load", instead_of="first").status_code == 200
    assert server.states()["first"] == "registered"
    with server.http() as http:
        reply = http.post("/v1/messages", json={"model": "claude-x", "messages": HI, "max_tokens": 5})
    assert reply.json()["model"] == "second"


def test_with_no_model_left_requests_are_told_so_and_a_new_one_serves_them(server: Server) -> None:
    assert server.post("first/unload").status_code == 200
    reply = server.chat("first")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_unavailable")
    assert server.post("first/load").status_code == 200
    assert server.chat("first", max_tokens=5).status_code == 200


def test_what_cannot_be_loaded_is_refused_with_the_reason(server: Server) -> None:
    assert server.post("third/load").status_code == 400
    assert server.post("second/load", instead_of="third").status_code == 404
    server.loaded._free_bytes = lambda _settings: 1000
    reply = server.post("second/load")
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
    assert "are free; unload another first" in reply.json()["error"]["message"]


# -- sleep --


@pytest.fixture
def drowsy(tmp_path: Path) -> Iterator[Server]:
    with serving_models(tmp_path, sleep_after_s=0.3) as opened:
        yield opened


def asleep(server: Server) -> None:
    wait_for(lambda: server.states()["first"] == "asleep", timeout_s=30)


def test_a_stream_that_wakes_its_model_hears_that_it_waits_and_then_its_answer(drowsy: Server) -> None:
    asleep(drowsy)
    with drowsy.http() as http:
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["reasons"]) == (200, ["first is asleep; the next request wakes it"])
        assert 'atlas_engine_asleep{model="first"} 1.0' in http.get("/metrics").text
        drowsy.gate.clear()
        body = {"model": "first", "messages": HI, "stream": True, "max_tokens": 5}
        with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            assert next(lines) == ": queued position=1"
            [activity] = drowsy.running.deps.traffic.open()
            assert activity.usage.state == "queued"
            drowsy.gate.set()
            assert any('"finish_reason":"length"' in line for line in lines)
    [usage] = drowsy.store.usage.recent(limit=5)
    assert (usage.state, usage.completion_tokens) == ("completed", 5)
    assert usage.prompt_tokens < 60  # as the model counts it, whatever was reserved


def test_whole_answers_wait_too_and_all_are_served_by_one_waking(drowsy: Server) -> None:
    asleep(drowsy)
    with ThreadPoolExecutor(4) as threads:
        replies = list(threads.map(lambda _: drowsy.chat("first", max_tokens=5), range(4)))
    assert [reply.status_code for reply in replies] == [200] * 4


def test_a_client_that_goes_before_its_model_is_awake_is_answered_by_nobody(drowsy: Server) -> None:
    asleep(drowsy)
    drowsy.gate.clear()
    with drowsy.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json={"model": "first", "messages": HI}, timeout=0.5)
    drowsy.gate.set()
    wait_for(lambda: bool(drowsy.store.usage.recent(limit=5)), timeout_s=30)
    [usage] = drowsy.store.usage.recent(limit=5)
    assert (usage.state, usage.completion_tokens) == ("aborted", 0)
    assert drowsy.chat("first", max_tokens=5).status_code == 200


def test_a_model_that_sleeps_is_unloaded_without_being_woken(drowsy: Server) -> None:
    asleep(drowsy)
    drowsy.gate.clear()
    assert drowsy.post("first/unload").status_code == 200
