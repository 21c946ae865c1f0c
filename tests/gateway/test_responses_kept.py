"""Going on from an answer of /v1/responses, reading it again, taking it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from atlas.engine import ScriptedEngine
from atlas.store import KeptResponses, Store
from tests.gateway.conftest import MODEL, Running, deps_of, new_store, serving
from tests.gateway.people import settle, signed_in

REPLIES = ["one", "two", "three"]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def kept_in(folder: Path, *, keep_s: float = 60.0) -> KeptResponses:
    return KeptResponses(folder / "responses", keep_s=keep_s, limit_bytes=10**6)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with serving(deps_of(ScriptedEngine(REPLIES, model=MODEL), responses=kept_in(tmp_path))) as running:
        yield running


@pytest.fixture
def client(server: Running) -> OpenAI:
    return server.openai()


def said(server: Running) -> list[tuple[str, str]]:
    """The conversation that the engine was asked to go on with last."""
    return [(message.role, message.content) for message in server.engine.prompts[-1].messages]


def test_a_conversation_goes_on_from_an_answer(server: Running, client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="a", instructions="Be brief.")
    assert (first.model_dump()["store"], first.previous_response_id) == (True, None)
    second = client.responses.create(model=MODEL, input=[{"role": "user", "content": "b"}], previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert said(server) == [("user", "a"), ("assistant", "one"), ("user", "b")]  # instructions are each request's own
    client.responses.create(model=MODEL, input="c", instructions="Be long.", previous_response_id=second.id)
    turns = ["a", "one", "b", "two", "c"]
    assert said(server) == [("system", "Be long."), *zip(["user", "assistant"] * 3, turns, strict=False)]
    client.responses.create(model=MODEL, input="other", previous_response_id=first.id)  # another branch
    assert said(server) == [("user", "a"), ("assistant", "one"), ("user", "other")]


def test_a_streamed_answer_is_kept_before_its_last_event(server: Running, client: OpenAI) -> None:
    *_, last = client.responses.create(model=MODEL, input="a", stream=True)
    assert last.type == "response.completed"
    assert last.response.model_dump()["store"] is True
    assert client.responses.retrieve(last.response.id) == last.response
    client.responses.create(model=MODEL, input="b", previous_response_id=last.response.id)
    assert said(server) == [("user", "a"), ("assistant", "one"), ("user", "b")]


def test_the_result_of_a_call_goes_on_from_the_call(tmp_path: Path) -> None:
    with serving(deps_of(ScriptedEngine([CALL, "done"], model=MODEL), responses=kept_in(tmp_path))) as running:
        client = running.openai()
        tool = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}
        asked = client.responses.create(model=MODEL, input="a", tools=[tool])  # type: ignore[list-item]  # as JSON
        [call] = asked.output
        assert call.type == "function_call"
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "2"}
        answer = client.responses.create(model=MODEL, input=[result], previous_response_id=asked.id)  # type: ignore[list-item]
        assert answer.output_text == "done"
        user, assistant, tool_result = running.engine.prompts[-1].messages
        assert (user.content, assistant.tool_calls[0].name, tool_result.content) == ("a", "add", "2")
        assert assistant.tool_calls[0].id == tool_result.tool_call_id == call.call_id


def test_an_answer_is_read_again_and_taken_back(server: Running, client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="a", metadata={"a": "b"})
    second = client.responses.create(model=MODEL, input="b", previous_response_id=first.id)
    assert client.responses.retrieve(first.id) == first
    client.responses.delete(first.id)
    for again in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(NotFoundError, match=first.id):
            again(first.id)
    with pytest.raises(BadRequestError, match=first.id) as refused:
        client.responses.create(model=MODEL, input="c", previous_response_id=first.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")
    client.responses.create(model=MODEL, input="c", previous_response_id=second.id)
    assert said(server)[0] == ("user", "a")


def test_what_is_not_to_be_kept_is_not(client: OpenAI, tmp_path: Path) -> None:
    answer = client.responses.create(model=MODEL, input="a", store=False)
    assert answer.model_dump()["store"] is False
    assert not (tmp_path / "responses").exists()
    with pytest.raises(NotFoundError):
        client.responses.retrieve(answer.id)


def test_a_server_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    for responses in (None, kept_in(tmp_path, keep_s=0)):
        with serving(deps_of(ScriptedEngine(REPLIES, model=MODEL), responses=responses)) as running:
            client = running.openai()
            answer = client.responses.create(model=MODEL, input="a")
            assert answer.model_dump()["store"] is False
            with pytest.raises(NotFoundError):
                client.responses.retrieve(answer.id)
            with pytest.raises(BadRequestError, match=r"responses\.keep_s"):
                client.responses.create(model=MODEL, input="b", previous_response_id=answer.id)


def test_a_disk_that_takes_nothing_fails_no_answer(server: Running, client: OpenAI, tmp_path: Path) -> None:
    (tmp_path / "responses").write_text("a file in the way")
    answer = client.responses.create(model=MODEL, input="a")
    assert (answer.output_text, answer.model_dump()["store"]) == ("one", False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = new_store(tmp_path / "home")
    yield store
    store.close()


def test_an_answer_is_its_owners_alone(store: Store, tmp_path: Path) -> None:
    people = settle(store)
    with serving(deps_of(ScriptedEngine(REPLIES, model=MODEL), store=store, responses=kept_in(tmp_path))) as running:
        with signed_in(running.url, store, people.member) as mara:
            name = mara.post("/v1/responses", json={"model": MODEL, "input": "a"}).json()["id"]
            assert mara.get(f"/v1/responses/{name}").status_code == 200
        for somebody in (people.other, people.admin, people.owner):
            with signed_in(running.url, store, somebody) as client:
                assert_not_there(client, name)
        with signed_in(running.url, store, people.member) as mara:
            assert mara.delete(f"/v1/responses/{name}").json() == {"id": name, "object": "response", "deleted": True}


def assert_not_there(client: httpx.Client, name: str) -> None:
    assert client.get(f"/v1/responses/{name}").status_code == 404
    assert client.delete(f"/v1/responses/{name}").status_code == 404
    reply = client.post("/v1/responses", json={"model": MODEL, "input": "b", "previous_response_id": name})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "previous_response_not_found")
