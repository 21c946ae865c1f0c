"""Requests that are wrong, each in one way: a valid body with one value replaced, or bytes that are no JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


class Malformed(NamedTuple):
    """A request to send, and what is wrong with it."""

    path: str
    body: bytes
    why: str


VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/completions": {"prompt": "hi", "max_tokens": 4},
    "/v1/embeddings": {"input": "hi"},
    "/v1/responses": {"input": "hi", "max_output_tokens": 16},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/tokenize": {"content": "hi"},
    "/detokenize": {"tokens": [1, 2]},
}

NUMBERS: dict[str, list[Any]] = {
    "temperature": ["hot", -1, 1e9, [], {}],
    "top_p": ["x", -0.1, 1.5, []],
    "n": [0, -1, 129, "two", 1.5, [1]],
    "max_tokens": [-1, "many", 1.5, []],
    "seed": ["x", 1.5, []],
    "stop": [5, {"a": 1}, [1]],
    "stream": ["yes", 2, []],
    "presence_penalty": ["x", []],
    "frequency_penalty": ["x", {}],
    "logit_bias": [[1], "x", {"a": 1}, {"999999999": 1}],
    "top_k": ["x", 1.5],
    "min_p": ["x", -1, 2],
}

WRONG: dict[str, dict[str, list[Any]]] = {
    "/v1/chat/completions": NUMBERS
    | {
        "model": [1, None, [], {}, "no-such-model"],
        "messages": ["hi", {}, None, [1], [[]], [{"role": "robot", "content": "x"}], [{"role": "user"}], [{"content": "x"}]]
        + [
            [{"role": "user", "content": value}]
            for value in (5, {"a": 1}, [1], [{"type": "image_url", "image_url": {"url": "x"}}])
        ],
        "logprobs": ["yes", 5],
        "top_logprobs": [-1, 21, "x"],
        "tools": ["x", [1], [{"type": "function"}], [{"type": "web_search"}], [{"type": "function", "function": {"name": 1}}]],
        "tool_choice": ["required", "maybe", 5, {"type": "function", "function": {"name": "g"}}],
        "response_format": [
            "json",
            {"type": "xml"},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {"name": "x"}},
        ]
        + [
            {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            for schema in ({"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}, {"minimum": "x"})
        ],
        "stream_options": ["x", 5],
        "modalities": [["audio"]],
        "functions": [[{"name": "f"}]],
        "reasoning_effort": [5, "colossal"],
        "thinking_budget_tokens": [-1, "x"],
    },
    "/v1/completions": NUMBERS
    | {
        "model": [1, None, "no-such-model"],
        "prompt": [5, {"a": 1}, [None], [[-1]], [[999999999]], ["a", 1], ""],
        "suffix": [5, []],
        "logprobs": ["x", -1, 99],
        "echo": ["x", 7],
        "best_of": ["x", 7],
    },
    "/v1/embeddings": {
        "model": [1, "no-such-model"],
        "input": [5, None, {}, [None], [[-1]], [[]], "", [], [""]],
        "encoding_format": ["hex", 5],
        "dimensions": [0, -1, "x", 7],
    },
    "/v1/responses": {
        "model": [1, None, "no-such-model"],
        "input": [5, {}, [1], [{"type": "message"}], [{"role": "robot", "content": "x"}], [{"role": "user", "content": 5}]],
        "instructions": [5, {}],
        "max_output_tokens": [-1, "many", 1.5],
        "temperature": ["hot", -1],
        "tools": ["x", [1], [{"type": "function"}], [{"type": "function", "name": 5}]],
        "tool_choice": ["maybe", 5, {"type": "function", "name": "g"}],
        "text": ["x", {"format": {"type": "xml"}}, {"format": {"type": "json_schema", "name": "x"}}],
        "previous_response_id": ["resp_unknown", 5],
        "stream": ["yes", 2],
    },
    "/v1/messages": {
        "model": [1, None, "no-such-model"],
        "messages": [
            "hi",
            [],
            [1],
            [{"role": "system", "content": 5}],
            [{"role": "user", "content": [{"type": "image", "source": {}}]}],
        ],
        "max_tokens": [0, -1, "x", None],
        "temperature": ["hot", -1],
        "tools": ["x", [1], [{"name": 5}]],
        "tool_choice": ["x", {"type": "tool", "name": "g"}, {"type": "maybe"}],
        "stop_sequences": [5, [1]],
        "system": [5, {"a": 1}],
        "thinking": ["x", {"type": "maybe"}],
    },
    "/v1/messages/count_tokens": {"messages": ["hi", [], [1]], "model": [1, "no-such-model"]},
    "/tokenize": {"content": [5, None, [], {}]},
    "/detokenize": {"tokens": ["x", [-1], [999999999], [1.5], ["a"], None]},
}

RAW: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"model": "x", "messages": [',
    "an array": b"[]",
    "null": b"null",
    "a number": b"7",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "nested 100,000 deep": b'{"messages":' + b"[" * 100_000,
    "NaN": b'{"temperature": NaN}',
    "trailing": b'{"model": "x"} {"model": "x"}',
}


def requests(model: str) -> Iterator[Malformed]:
    """All of them; `model` is the loaded one's id."""
    for path, fields in WRONG.items():
        for field, values in fields.items():
            for value in values:
                body = {"model": model, **VALID[path], field: value}
                yield Malformed(path, json.dumps(body).encode(), f"{field} = {value!r}"[:80])
    for path in VALID:
        for why, raw in RAW.items():
            yield Malformed(path, raw, why)
