"""What Anthropic's clients send and expect, field by field; nothing here knows our values."""

from __future__ import annotations

from typing import Literal

from atlas.gateway.wire import Wire


class AnthropicError(Wire):
    type: str
    message: str


class AnthropicErrorReply(Wire):
    error: AnthropicError
    request_id: str
    type: Literal["error"] = "error"
