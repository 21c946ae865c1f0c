"""Conversations as text, through the very template that is shipped in the model file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from atlas.types import Message

TEMPLATE_TEXT = (Path(__file__).parent / "chat_template.jinja").read_text("utf-8").rstrip("\n")
END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
EMPTY_THINKING = "<think>\n\n</think>\n\n"


def render(messages: Sequence[Message], *, thinking: bool | None = None, tools: Sequence[dict[str, Any]] = ()) -> str:
    """Text up to where the model continues; `thinking=False` closes an empty think block for it."""
    flags = {} if thinking is None else {"enable_thinking": thinking}
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return template().render(messages=turns, tools=list(tools), add_generation_prompt=True, **flags)


@cache
def template() -> Template:
    # The settings of transformers' own renderer, so that both give the same text; jinja's own tojson would escape for HTML.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    return environment.from_string(TEMPLATE_TEXT)
