"""The configuration files of coding agents: where they lie, and what connects them to ATLAS.

Each function takes what the file holds now and returns what it shall hold; what is not ATLAS's own in it stays as it is, comments
included where the format has them.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from atlas.errors import OperatorError


class Connection(NamedTuple):
    """What a client needs to know; `url` without /v1, `context_tokens` 0 if unknown."""

    url: str
    key: str
    model: str
    context_tokens: int


class Client(NamedTuple):
    """One coding agent.

    Attributes:
        path: its configuration file, given the environment.
        configure: (text now, connection) -> text then.
        route: what it calls, for the round trip.
        start: how to start it afterwards; {model} is the model's id.
    """

    path: Callable[[Mapping[str, str]], Path]
    configure: Callable[[str, Connection], str]
    route: str
    start: str


def opencode_path(environ: Mapping[str, str]) -> Path:
    """OPENCODE_CONFIG, else the XDG place (https://opencode.ai/docs/config)."""
    if chosen := environ.get("OPENCODE_CONFIG"):
        return Path(chosen)
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else _home(environ) / ".config") / "opencode" / "opencode.json"


def configure_opencode(text: str, connection: Connection) -> str:
    """Adds a provider named atlas; the default model is set only if there is none."""
    document = _json_object(text)
    limits = {"limit": {"context": connection.context_tokens, "output": connection.context_tokens // 2}}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "ATLAS",
        "options": {"baseURL": f"{connection.url}/v1", "apiKey": connection.key},
        "models": {connection.model: {"name": connection.model, **(limits if connection.context_tokens else {})}},
    }
    document.setdefault("$schema", "https://opencode.ai/config.json")
    _table(document, "provider")["atlas"] = provider
    document.setdefault("model", f"atlas/{connection.model}")
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def claude_path(environ: Mapping[str, str]) -> Path:
    """User settings (https://code.claude.com/docs/en/settings)."""
    folder = environ.get("CLAUDE_CONFIG_DIR")
    return (Path(folder) if folder else _home(environ) / ".claude") / "settings.json"


def configure_claude(text: str, connection: Connection) -> str:
    """Sets the address, the key and the models in `env`; Claude Code appends /v1/messages itself."""
    document = _json_object(text)
    _table(document, "env").update(
        ANTHROPIC_BASE_URL=connection.url,
        ANTHROPIC_AUTH_TOKEN=connection.key,
        ANTHROPIC_MODEL=connection.model,
        ANTHROPIC_DEFAULT_HAIKU_MODEL=connection.model,
    )
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def aider_path(environ: Mapping[str, str]) -> Path:
    """In the home directory (https://aider.chat/docs/config/aider_conf.html)."""
    return _home(environ) / ".aider.conf.yml"


def configure_aider(text: str, connection: Connection) -> str:
    """Sets three top-level lines of the YAML; the rest is not touched."""
    values = {
        "openai-api-base": f"{connection.url}/v1",
        "openai-api-key": connection.key,
        "model": f"openai/{connection.model}",
    }
    for name, value in values.items():
        line = f"{name}: {json.dumps(value)}"  # a JSON string is a YAML string
        pattern = re.compile(rf"^{re.escape(name)}[ \t]*:.*$", re.MULTILINE)
        text = pattern.sub(line.replace("\\", r"\\"), text) if pattern.search(text) else _append(text, line)
    return text


def codex_path(environ: Mapping[str, str]) -> Path:
    """CODEX_HOME, else ~/.codex (https://developers.openai.com/codex/config-basic)."""
    folder = environ.get("CODEX_HOME")
    return (Path(folder) if folder else _home(environ) / ".codex") / "config.toml"


def configure_codex(text: str, connection: Connection) -> str:
    """Adds a provider named atlas; the default model is set only if there is none.

    The wire is always the Responses API: releases since February 2026 refuse a whole file in which any provider says "chat".
    There is no profile, because releases before and after 0.134 read profiles from different files
    (https://developers.openai.com/codex/config-advanced).
    """
    provider = {
        "name": "ATLAS",
        "base_url": f"{connection.url}/v1",
        "experimental_bearer_token": connection.key,
        "wire_api": "responses",
    }
    text = _replace_table(text, "model_providers.atlas", provider)
    before = _toml(text)
    if before.get("model_provider") == "atlas" or not {"model", "model_provider"} & set(before):
        if connection.context_tokens:
            text = _set_top_level(text, "model_context_window", connection.context_tokens)
        text = _set_top_level(text, "model_provider", "atlas")
        text = _set_top_level(text, "model", connection.model)
    _toml(text)
    return text


CLIENTS = {
    "opencode": Client(opencode_path, configure_opencode, "/v1/chat/completions", "opencode --model atlas/{model}"),
    "claude": Client(claude_path, configure_claude, "/v1/messages", "claude"),
    "aider": Client(aider_path, configure_aider, "/v1/chat/completions", "aider"),
    "codex": Client(codex_path, configure_codex, "/v1/responses", "codex -c model_provider=atlas -m {model}"),
}


def _home(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME")
    return Path(home) if home else Path.home()


def _json_object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise OperatorError(f"the file is not plain JSON ({error}); add what --dry-run shows by hand") from None
    if not isinstance(document, dict):
        raise OperatorError("the file does not hold a JSON object; move it away first")
    return document


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    table = document.setdefault(name, {})
    if not isinstance(table, dict):
        raise OperatorError(f'"{name}" in the file is not an object; mend it first')
    return table


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OperatorError(f"the file is not TOML we can extend ({error}); mend it first") from None


def _set_top_level(text: str, name: str, value: str | int) -> str:
    """The TOML text with a key outside all tables set: in its old line, else in a first line."""
    line = f"{name} = {json.dumps(value)}"
    first_table = re.search(r"^[ \t]*\[", text, re.MULTILINE)
    end = first_table.start() if first_table else len(text)
    found = re.search(rf"^{name}[ \t]*=.*$", text[:end], re.MULTILINE)
    if found:
        return text[: found.start()] + line + text[found.end() :]
    return f"{line}\n{chr(10) if text.startswith('[') else ''}{text}"


def _replace_table(text: str, name: str, values: Mapping[str, str]) -> str:
    """The TOML text with table `name` set to `values`: in its old place, else at the end."""
    table = "\n".join((f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())))
    pattern = re.compile(rf"^\[{re.escape(name)}\][ \t]*(?:#.*)?$(?:\n(?![ \t]*\[).*)*", re.MULTILINE)
    if pattern.search(text):
        return pattern.sub(lambda _match: table + "\n", text)
    return _append(text, f"{'' if not text.strip() else chr(10)}{table}")


def _append(text: str, lines: str) -> str:
    return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{lines}\n"
