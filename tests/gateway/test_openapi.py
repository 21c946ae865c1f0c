from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    missing_required_header,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from atlas.engine import ScriptedEngine
from atlas.gateway import create_app
from atlas.store import Store
from tests.gateway.conftest import KEY, MODEL, Running, deps_of, new_store, serving
from tests.gateway.metered import redis
from tests.gateway.people import People, settle, token_of
from tests.gateway.sandboxes import new_sandbox, started
from tests.gateway.tasking import new_journal, opened
from tests.store.live.conftest import Server

__all__ = ["redis"]  # a fixture

PROXIED = {"via": "1.1 test"}  # else /metrics takes us for a program on its own machine


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = new_store(tmp_path_factory.mktemp("openapi") / "data")
    yield store
    store.close()


@pytest.fixture(scope="module")
def people(ledger: Store) -> People:
    return settle(ledger)


@pytest.fixture(scope="module")
def server(ledger: Store, redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    journal = new_journal(ledger, redis, tmp_path_factory.mktemp("journal"))
    deps = deps_of(ScriptedEngine(["Hello world!"], model=MODEL), store=ledger, sandbox=new_sandbox(), journal=journal)
    with serving(deps) as running, started(running), opened(journal, running):
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


# Not run: negative_data_rejection and positive_data_acceptance (the schema cannot say which model is loaded, which parameters it
# honours, or whose key it is, so a request that fits the schema may rightly be refused); ensure_resource_availability,
# use_after_free and object_level_authorization (they follow links, which the document has none of: policy.toml and test_portal_*
# do that work by hand); allow_header_conformance is part of test_http.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    ignored_auth,
    missing_required_header,
    unsupported_method,
]
SCHEMA = schemathesis.openapi.from_dict(create_app(deps_of(None)).openapi_schema.to_schema())
OPERATIONS = [(path, method) for path in sorted(SCHEMA) for method in SCHEMA[path]]


def test_there_are_operations_to_check() -> None:
    assert len(OPERATIONS) >= 16


@pytest.fixture(scope="module", params=["key", "member", "owner"])
def headers(request: pytest.FixtureRequest, ledger: Store, people: People) -> dict[str, str]:
    """Of a program with a key, and of people with access tokens."""
    name = request.param
    credential = KEY if name == "key" else token_of(ledger, getattr(people, name))
    return {"Authorization": f"Bearer {credential}"} | PROXIED  # ignored_auth takes away a header of just this spelling


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_generated_requests_get_documented_answers(server: Running, headers: dict[str, str], path: str, method: str) -> None:
    """Right and wrong values of every field; the right model's name, so that requests get past it."""

    @settings(max_examples=20, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=SCHEMA[path][method].as_strategy())
    def check(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODEL
        case.call_and_validate(base_url=server.url, headers=headers, checks=CHECKS)

    check()
