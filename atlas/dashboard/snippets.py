"""What to paste where: the settings that connect a client to this server."""

from __future__ import annotations

import json
from typing import NamedTuple

KEY_PLACE = "YOUR_KEY"


class Snippet(NamedTuple):
    """`where` is the file or place the text goes to."""

    id: str
    name: str
    where: str
    text: str


def snippets(base_url: str, model: str, *, key: str = KEY_PLACE, context_tokens: int = 0) -> tuple[Snippet, ...]:
    """One per client, with its real address and model; `key` is a placeholder unless a key has just been made."""
    return (
        Snippet("openai", "openai (Python)", "your program", _openai(base_url, model, key)),
        Snippet("curl", "curl", "a terminal", _curl(base_url, model, key)),
        Snippet("opencode", "OpenCode", "~/.config/opencode/opencode.json", _opencode(base_url, model, key, context_tokens)),
        Snippet("claude", "Claude Code", "~/.claude/settings.json", _claude(base_url, model, key)),
        Snippet("aider", "aider", "~/.aider.conf.yml", _aider(base_url, model, key)),
        Snippet("continue", "Continue", "~/.continue/config.yaml", _continue(base_url, model, key)),
    )


def _openai(base_url: str, model: str, key: str) -> str:
    return f"""\
from openai import OpenAI

client = OpenAI(base_url="{base_url}/v1", api_key="{key}")
reply = client.chat.completions.create(
    model="{model}",
    messages=[{{"role": "user", "content": "Write a function that reverses a string."}}],
)
print(reply.choices[0].message.content)"""


def _curl(base_url: str, model: str, key: str) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    return f"""\
curl {base_url}/v1/chat/completions \\
  -H "Authorization: Bearer {key}" \\
  -H "Content-Type: application/json" \\
  -d '{body}'"""


def _opencode(base_url: str, model: str, key: str, context_tokens: int) -> str:
    limits = {"limit": {"context": context_tokens, "output": context_tokens // 2}} if context_tokens else {}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "ATLAS",
        "options": {"baseURL": f"{base_url}/v1", "apiKey": key},
        "models": {model: {"name": model, **limits}},
    }
    document = {"$schema": "https://opencode.ai/config.json", "provider": {"atlas": provider}, "model": f"atlas/{model}"}
    return json.dumps(document, indent=2)


def _claude(base_url: str, model: str, key: str) -> str:
    environment = {
        "ANTHROPIC_BASE_URL": base_url,
        "ANTHROPIC_AUTH_TOKEN": key,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
    }
    return json.dumps({"env": environment}, indent=2)


def _aider(base_url: str, model: str, key: str) -> str:
    return f"openai-api-base: {base_url}/v1\nopenai-api-key: {key}\nmodel: openai/{model}"


def _continue(base_url: str, model: str, key: str) -> str:
    return f"""\
name: ATLAS
version: 0.0.1
schema: v1
models:
  - name: {model}
    provider: openai
    model: {model}
    apiBase: {base_url}/v1
    apiKey: {key}
    roles: [chat, edit, apply]"""
