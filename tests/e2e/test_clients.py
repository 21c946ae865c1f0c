"""Real client libraries against a running server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from anthropic import Anthropic
from openai import AsyncOpenAI, OpenAI

from tests.e2e.conftest import KEY, Running

ADD: dict[str, Any] = {
    "name": "add",
    "description": "Add two integers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
QUESTION = "What is 1 + 2?"


@contextmanager
def connected(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def openai(scripted: Running) -> Iterator[OpenAI]:
    with connected(scripted) as client:
        yield client


@pytest.fixture
def openai_tools(tool_loop: Running) -> Iterator[OpenAI]:
    with connected(tool_loop) as client:
        yield client


@pytest.fixture
def openai_nano(nano: Running) -> Iterator[OpenAI]:
    with connected(nano) as client:
        yield client


@pytest.fixture
def anthropic(scripted: Running) -> Iterator[Anthropic]:
    with Anthropic(base_url=scripted.url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_tools(tool_loop: Running) -> Iterator[Anthropic]:
    with Anthropic(base_url=tool_loop.url, api_key=KEY, max_retries=0) as client:
        yield client


def model_of(client: OpenAI) -> str:
    return client.models.list().data[0].id


def test_openai_chat(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(model=model_of(openai), messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "Hello world!\n"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.model_extra == {"reasoning_content": "plan."} or "plan." in str(answer.choices[0].message)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_openai_stream_equals_the_whole_answer(openai: OpenAI) -> None:
    stream = openai.chat.completions.create(
        model=model_of(openai), messages=[{"role": "user", "content": "hi"}], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello world!\n"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_openai_responses(openai: OpenAI) -> None:
    answer = openai.responses.create(model=model_of(openai), input="hi")
    assert answer.output_text == "Hello world!\n"
    assert answer.status == "completed"
    with openai.responses.stream(model=model_of(openai), input="hi") as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(texts) == "Hello world!\n"


def test_openai_embeddings(openai: OpenAI) -> None:
    result = openai.embeddings.create(model=model_of(openai), input=["one", "two"])
    assert len(result.data) == 2
    assert sum(x * x for x in result.data[0].embedding) == pytest.approx(1.0, abs=1e-4)


def test_openai_structured_output(openai_nano: OpenAI) -> None:
    """Any model must keep to the schema; what nano fills in is its own affair."""
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["ada", "bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = openai_nano.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": "Who?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}},
        max_tokens=250,
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert value["name"] in ("ada", "bob")
    assert 0 <= value["age"] <= 99


def test_openai_tool_round_trip(openai_tools: OpenAI) -> None:
    client = openai_tools
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    tools: Any = [{"type": "function", "function": ADD}]
    first = client.chat.completions.create(model=model_of(client), messages=messages, tools=tools)
    assert first.choices[0].finish_reason == "tool_calls"
    [call] = first.choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"a": 1, "b": 2}  # type: ignore[union-attr]
    messages += [
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "3"},
    ]
    second = client.chat.completions.create(model=model_of(client), messages=messages, tools=tools)
    assert second.choices[0].message.content == "The sum is 3."
    assert second.choices[0].finish_reason == "stop"


def test_anthropic_messages(anthropic: Anthropic) -> None:
    client = anthropic
    answer = client.messages.create(model="claude-x", max_tokens=200, messages=[{"role": "user", "content": "hi"}])
    assert [block.text for block in answer.content if block.type == "text"] == ["Hello world!\n"]
    assert answer.stop_reason == "end_turn"
    with client.messages.stream(model="claude-x", max_tokens=200, messages=[{"role": "user", "content": "hi"}]) as stream:
        assert "".join(stream.text_stream) == "Hello world!\n"
    counted = client.messages.count_tokens(model="claude-x", messages=[{"role": "user", "content": "hi"}])
    assert counted.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)


def test_anthropic_tool_use(anthropic_tools: Anthropic) -> None:
    client = anthropic_tools
    tools: Any = [{"name": "add", "description": "Add.", "input_schema": ADD["parameters"]}]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    first = client.messages.create(model="claude-x", max_tokens=200, messages=messages, tools=tools)
    [use] = [block for block in first.content if block.type == "tool_use"]
    assert (first.stop_reason, use.name, use.input) == ("tool_use", "add", {"a": 1, "b": 2})
    messages.append({"role": "assistant", "content": [block.model_dump() for block in first.content]})
    messages.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "3"}]})
    second = client.messages.create(model="claude-x", max_tokens=200, messages=messages, tools=tools)
    assert [block.text for block in second.content if block.type == "text"] == ["The sum is 3."]


LITELLM = """
import litellm, sys
options = dict(model="openai/" + sys.argv[1], api_base=sys.argv[2], api_key=sys.argv[3], num_retries=0)
options["messages"] = [{"role": "user", "content": "hi"}]
print(repr(litellm.completion(**options).choices[0].message.content))
print(repr("".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **options))))
"""


def test_litellm(scripted: Running, openai: OpenAI) -> None:
    """In a process of its own: it leaves an event loop open behind it."""
    command = [sys.executable, "-c", LITELLM, model_of(openai), f"{scripted.url}/v1", KEY]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.splitlines()[-2:] == [repr("Hello world!\n")] * 2, result.stderr


async def test_pydantic_ai_completes_a_tool_loop(tool_loop: Running, openai_tools: OpenAI) -> None:
    from pydantic_ai import Agent  # heavy, and only here
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with AsyncOpenAI(base_url=f"{tool_loop.url}/v1", api_key=KEY) as client:
        model = OpenAIChatModel(model_of(openai_tools), provider=OpenAIProvider(openai_client=client))
        agent = Agent(model)
        seen = []

        # A grammar insists on the tokens that a tokenizer would choose; those of a scripted chain are not.
        @agent.tool_plain(strict=False)
        def add(a: int, b: int) -> int:
            seen.append((a, b))
            return a + b

        result = await agent.run(QUESTION)
        assert seen == [(1, 2)]
        assert result.output == "The sum is 3."


def test_the_readmes_request_returns_code_that_runs(nano: Running) -> None:
    """The request is taken from README.md, so that it cannot rot there."""
    from pathlib import Path

    readme = (Path(__file__).parents[2] / "README.md").read_text()
    body = re.search(r"-d '(\{.*?\})'", readme, re.DOTALL)
    assert body is not None, "README.md shows no request"
    request = json.loads(body[1])
    answer = nano.post("/v1/chat/completions", request).json()["choices"][0]["message"]["content"]
    code = re.search(r"```python\n(.*?)```", answer, re.DOTALL)
    assert code is not None, answer
    names: dict[str, Any] = {}
    exec(code[1], names)
    functions = [value for name, value in names.items() if callable(value) and not name.startswith("__")]
    assert functions, answer
