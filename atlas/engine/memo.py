"""What was just computed for a prompt, kept for the moment between counting its tokens and submitting it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

from atlas.types import Message, Prompt, Tool

T = TypeVar("T")

MEMO_TOKENS = 1 << 20  # of prompts kept, all together: some 10 MB of texts and ids; chosen, unmeasured


class _Key(NamedTuple):
    """All that decides a prompt's tokens but its tools, whose schemas are dicts and have no hash."""

    messages: tuple[Message, ...]
    text: str | None
    suffix: str | None
    tokens: tuple[int, ...] | None
    tool_choice: str
    thinking: bool | None


class _Entry(NamedTuple, Generic[T]):
    tools: tuple[Tool, ...]
    value: T
    num_tokens: int


class PromptMemo(Generic[T]):
    """Values by prompt, least recently used out first. A prompt is known again whatever its sampling, owner and bounds are."""

    def __init__(self, limit_tokens: int = MEMO_TOKENS) -> None:
        self._limit_tokens = limit_tokens
        self._entries: OrderedDict[_Key, _Entry[T]] = OrderedDict()
        self._num_tokens = 0

    def get(self, prompt: Prompt) -> T | None:
        key = _key(prompt)
        entry = self._entries.get(key)
        if entry is None or entry.tools != prompt.tools:
            return None
        self._entries.move_to_end(key)
        return entry.value

    def put(self, prompt: Prompt, value: T, *, num_tokens: int) -> None:
        """Keep a value; one prompt of more tokens than the limit is kept alone."""
        key = _key(prompt)
        if (old := self._entries.pop(key, None)) is not None:
            self._num_tokens -= old.num_tokens
        self._entries[key] = _Entry(prompt.tools, value, num_tokens)
        self._num_tokens += num_tokens
        while self._num_tokens > self._limit_tokens and len(self._entries) > 1:
            self._num_tokens -= self._entries.popitem(last=False)[1].num_tokens


def _key(prompt: Prompt) -> _Key:
    return _Key(prompt.messages, prompt.text, prompt.suffix, prompt.tokens, prompt.tool_choice, prompt.thinking)
