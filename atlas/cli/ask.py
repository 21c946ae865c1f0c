"""`atlas ask`: one question, the answer on stdout as it comes, the thinking on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx

from atlas.cli.client import TIMEOUT, Server, check, events, find_key, find_server, headers, talking
from atlas.cli.options import find_directory, json_option, read_settings, settings_options
from atlas.errors import OperatorError


@click.command()
@click.argument("question", nargs=-1)
@click.option("--model", help="By default the loaded one.")
@click.option("--system", help="System message.")
@click.option("--max-tokens", type=click.IntRange(min=1))
@click.option("--temperature", type=click.FloatRange(min=0))
@click.option("--seed", type=int)
@json_option
@settings_options
def ask(
    question: tuple[str, ...],
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    as_json: bool,
    config: Path | None,
    data_dir: str | None,
) -> None:
    """Ask the running server one question; without words, the question is read from stdin.

    \b
    Example:
      atlas ask "why does this fail?" < traceback.txt
    """
    directory = find_directory(read_settings(config, data_dir))
    server = find_server(directory)
    messages = [{"role": "system", "content": system}] if system else []
    body = {
        "model": model or server.model,
        "messages": [*messages, {"role": "user", "content": read_question(question)}],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    given = {name: value for name, value in body.items() if value is not None}
    chunks = stream(server, given, find_key(directory, server))
    answer = collect(chunks, is_shown=not as_json)
    if as_json:
        print(json.dumps(answer))
    elif answer["finish_reason"] == "length":
        print("(cut at the token limit; --max-tokens raises it)", file=sys.stderr)


def read_question(words: tuple[str, ...]) -> str:
    """The words, and what is piped in after them.

    Raises:
        click.UsageError: neither.
    """
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    question = "\n\n".join(part for part in (" ".join(words), piped.strip()) if part)
    if not question:
        raise click.UsageError("nothing to ask: give a question, or pipe one in")
    return question


def stream(server: Server, body: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """Chunks of a chat completion."""
    url = f"{server.url}/v1/chat/completions"
    request = httpx.stream("POST", url, json=body, headers=headers(key), timeout=TIMEOUT, verify=server.verify)
    with talking(url), request as response:
        check(response)
        yield from events(response)


def collect(chunks: Iterator[dict[str, Any]], *, is_shown: bool) -> dict[str, Any]:
    """The whole answer; shown piece by piece if it is for a person.

    Raises:
        OperatorError: the stream ended before the answer did.
    """
    answer: dict[str, Any] = {"model": None, "content": "", "reasoning": "", "finish_reason": None, "usage": None}
    for chunk in chunks:
        answer["model"] = chunk["model"]
        answer["usage"] = chunk.get("usage") or answer["usage"]
        for choice in chunk["choices"]:
            content, reasoning = choice["delta"].get("content") or "", choice["delta"].get("reasoning_content") or ""
            answer["content"] += content
            answer["reasoning"] += reasoning
            answer["finish_reason"] = choice["finish_reason"] or answer["finish_reason"]
            if is_shown:
                print(reasoning, end="", file=sys.stderr, flush=True)
                print(content, end="", flush=True)
    if is_shown:
        print(flush=True)
    if answer["finish_reason"] is None:
        raise OperatorError("the answer broke off; the server was stopped, or its serving process died")
    return answer
