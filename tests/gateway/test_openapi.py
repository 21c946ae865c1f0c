from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from atlas.engine import ScriptedEngine
from atlas.gateway import create_app
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


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(create_app(deps_of(None)).openapi_schema.to_schema())
OPERATIONS = [(path, method) for path in SCHEMA for method in SCHEMA[path]]


def test_there_are_operations_to_check() -> None:
    assert len(OPERATIONS) >= 16


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_generated_requests_get_documented_answers(server: Running, path: str, method: str) -> None:
    """Right and wrong values of every field; the right model's name, so that requests get past it."""

    @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=SCHEMA[path][method].as_strategy())
    def check(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODEL
        case.call_and_validate(base_url=server.url, headers=HEADERS, checks=CHECKS)

    check()
