"""What Anthropic's clients send and expect, field by field; nothing here knows our values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from atlas.gateway.wire import AtlasObject, Count, Fraction, FunctionName, NotSupported, Temperature, Wire

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]

# -- requests --


class Block(Wire):
    """A part of a message: text, thinking, redacted_thinking, tool_use or tool_result; other types are refused by name."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class MessageParam(Wire):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolParam(Wire):
    """A tool of the caller's; tools that Anthropic would run itself are refused by their type."""

    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class ToolChoiceParam(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingParam(Wire):
    """`adaptive` and `between_tools` leave thinking to the model."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Count | None = None


class OutputFormat(Wire):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Wire):
    format: OutputFormat | None = None


class CountTokensRequest(Wire, kw_only=True):
    model: str
    messages: Annotated[list[MessageParam], Meta(min_length=1)]
    system: str | list[Block] | None = None
    tools: Annotated[list[ToolParam], Meta(max_length=512)] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingParam | None = None
    output_config: OutputConfig | None = None
    mcp_servers: NotSupported = None
    container: NotSupported = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: Count
    stream: bool | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=64)] | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None


# -- replies --


class TextBlock(Wire, tag_field="type", tag="text"):
    text: str
    citations: None = None


class ThinkingBlock(Wire, tag_field="type", tag="thinking"):
    """Signatures are Anthropic's way to recognise its own thinking; ours is empty."""

    thinking: str
    signature: str = ""


class ToolUseBlock(Wire, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


ReplyBlock = TextBlock | ThinkingBlock | ToolUseBlock


class AnthropicUsage(Wire):
    """`input_tokens` are those read anew; those from the cache are beside them."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class MessageReply(Wire):
    id: str
    model: str
    content: list[ReplyBlock]
    usage: AnthropicUsage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    length_reason: str | UnsetType = UNSET  # ours: the limit that ended the answer, beside stop_reason "max_tokens"
    atlas: AtlasObject | UnsetType = UNSET  # ours: of model `atlas` only
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class InputTokenCount(Wire):
    input_tokens: int


class AnthropicError(Wire):
    type: str
    message: str


class AnthropicErrorReply(Wire):
    error: AnthropicError
    request_id: str
    type: Literal["error"] = "error"


# -- events of a stream --


class MessageStart(Wire):
    message: MessageReply
    type: Literal["message_start"] = "message_start"


class BlockStart(Wire):
    index: int
    content_block: ReplyBlock
    type: Literal["content_block_start"] = "content_block_start"


class TextDelta(Wire, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(Wire, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(Wire, tag_field="type", tag="signature_delta"):
    signature: str = ""


class InputJSONDelta(Wire, tag_field="type", tag="input_json_delta"):
    partial_json: str


class BlockDelta(Wire):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJSONDelta
    type: Literal["content_block_delta"] = "content_block_delta"


class BlockStop(Wire):
    index: int
    type: Literal["content_block_stop"] = "content_block_stop"


class StopDelta(Wire):
    stop_reason: StopReason
    stop_sequence: str | None
    length_reason: str | UnsetType = UNSET


class MessageDelta(Wire):
    delta: StopDelta
    usage: AnthropicUsage
    atlas: AtlasObject | UnsetType = UNSET
    type: Literal["message_delta"] = "message_delta"


class MessageStop(Wire):
    type: Literal["message_stop"] = "message_stop"


class Ping(Wire):
    type: Literal["ping"] = "ping"


StreamEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping | AnthropicErrorReply
