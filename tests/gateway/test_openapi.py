from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from atlas.engine import ScriptedEngine
from tests.gateway.conftest import KEY, MODEL, Running, deps_of, serving

HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(["Hello world!"], model=MODEL))) as running:
        yield running


@pytest.fixture(scope="module")
def document(server: Running) -> dict[str, Any]:
    with server.http() as http:
        reply = http.get("/openapi.json")
    assert reply.status_code == 200
    found: dict[str, Any] = json.loads(reply.text)
    return found


def test_the_document_has_every_route_with_its_errors(document: dict[str, Any]) -> None:
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ChatCompletionRequest")
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert chat["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorReply")
    messages = document["paths"]["/v1/messages"]["post"]
    assert messages["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/AnthropicErrorReply")
    assert {"/livez", "/readyz", "/metrics", "/v1/models/{model_id}", "/v1/embeddings", "/tokenize"} <= set(document["paths"])
    assert "temperature" in document["components"]["schemas"]["ChatCompletionRequest"]["properties"]


def test_no_page_that_loads_scripts_from_elsewhere_is_served(server: Running) -> None:
    with server.http() as http:
        for path in ("/schema", "/schema/swagger", "/docs", "/redoc", "/openapi.json/swagger", "/openapi.yaml"):
            assert http.get(path).status_code == 404
