"""What clients of OpenAI's Responses API send and expect, field by field; nothing here knows our values.

Input items and tools come in many shapes that grow with every release of the clients, so the request keeps them as objects: those
with a type we know are read into the structs below, the others are passed over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from atlas.gateway.wire import AtlasObject, Count, Fraction, FunctionName, NotSupported, Temperature, Wire

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Status = Literal["in_progress", "completed", "incomplete", "failed"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
Item = Annotated[
    dict[str, Any],
    Meta(
        description="A message, function_call, function_call_output, custom_tool_call, custom_tool_call_output or reasoning item."
    ),
]
ToolObject = Annotated[dict[str, Any], Meta(description="A function or custom tool; tools of other types are passed over.")]

# -- requests --


class Part(Wire):
    """A part of a message, of a tool's output or of reasoning; only text can be read, other types are refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputMessage(Wire):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class InputCall(Wire):
    """A function_call: `arguments` is JSON text."""

    call_id: str
    name: FunctionName
    arguments: str = "{}"


class InputCustomCall(Wire):
    call_id: str
    name: FunctionName
    input: str = ""


class InputCallOutput(Wire):
    """What a tool gave, of either kind of call."""

    call_id: str
    output: str | list[Part]


class InputReasoning(Wire):
    """`summary` is read only where there is no `content`; `encrypted_content` can be read by nobody but its maker."""

    content: list[Part] | None = None
    summary: list[Part] | None = None


class FunctionTool(Wire, tag_field="type", tag="function"):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomFormat(Wire):
    type: str = "text"
    syntax: str | None = None
    definition: str | None = None


class CustomTool(Wire, tag_field="type", tag="custom"):
    """A tool that takes free text; its grammar is told to the model, not enforced."""

    name: FunctionName
    description: str | None = None
    format: CustomFormat | None = None


class ToolRef(Wire):
    type: str
    name: str | None = None


class ToolChoice(Wire):
    """`{"type": "function" or "custom", "name": ...}` or `{"type": "allowed_tools", "mode": ..., "tools": [...]}`."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[ToolRef] | None = None


class TextFormat(Wire):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | UnsetType = UNSET
    schema: dict[str, Any] | UnsetType = UNSET
    strict: bool | UnsetType | None = UNSET


class TextOptions(Wire):
    format: TextFormat | None = None


class Reasoning(Wire):
    effort: Effort | None = None
    summary: str | None = None


class ResponseRequest(Wire):
    model: str
    input: str | Annotated[list[Item], Meta(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    tools: Annotated[list[ToolObject], Meta(max_length=512)] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: NotSupported = None
    conversation: NotSupported = None
    prompt: NotSupported = None
    top_logprobs: NotSupported = None


# -- replies --


class OutputText(Wire, tag_field="type", tag="output_text"):
    text: str
    annotations: tuple[str, ...] = ()  # always empty: nothing here cites files or pages
    logprobs: tuple[str, ...] = ()  # always empty: they are not asked for


class ReasoningText(Wire, tag_field="type", tag="reasoning_text"):
    text: str


class OutputMessage(Wire, tag_field="type", tag="message"):
    id: str
    content: list[OutputText]
    status: ItemStatus
    role: Literal["assistant"] = "assistant"


class OutputReasoning(Wire, tag_field="type", tag="reasoning"):
    """The whole thinking is in `content`; nobody summarises it."""

    id: str
    content: list[ReasoningText]
    status: ItemStatus
    summary: tuple[str, ...] = ()


class OutputCall(Wire, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


class OutputCustomCall(Wire, tag_field="type", tag="custom_tool_call"):
    id: str
    call_id: str
    name: str
    input: str
    status: ItemStatus


OutputItem = OutputMessage | OutputReasoning | OutputCall | OutputCustomCall


class InputTokensDetails(Wire):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Wire):
    reasoning_tokens: int = 0


class ResponseUsage(Wire):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Wire):
    code: str
    message: str


class IncompleteDetails(Wire):
    reason: Literal["max_output_tokens"] = "max_output_tokens"
    length_reason: str | UnsetType = UNSET  # ours: the limit that ended the answer


class ResponseReply(Wire):
    """What was asked is repeated in it; `store` says whether it is kept."""

    id: str
    created_at: int
    model: str
    status: Status
    output: list[OutputItem]
    tools: list[FunctionTool | CustomTool]
    tool_choice: str | ToolChoice
    text: TextOptions
    reasoning: Reasoning
    metadata: dict[str, str]
    parallel_tool_calls: bool
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    usage: ResponseUsage | None = None
    atlas: AtlasObject | UnsetType = UNSET  # ours: of model `atlas` only
    previous_response_id: str | None = None
    background: Literal[False] = False
    store: bool = False
    truncation: Literal["disabled"] = "disabled"
    object: Literal["response"] = "response"


class ResponseDeleted(Wire):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


# -- events of a stream --


class Event(Wire):
    """`sequence_number` is set as the event is sent."""

    type: str
    sequence_number: int = 0


class ResponseEvent(Event, kw_only=True):
    """response.created, .in_progress, and one of .completed, .incomplete and .failed."""

    response: ResponseReply


class ItemEvent(Event, kw_only=True):
    """response.output_item.added and .done."""

    output_index: int
    item: OutputItem


class InItem(Event, kw_only=True):
    item_id: str
    output_index: int


class PartEvent(InItem, kw_only=True):
    """response.content_part.added and .done."""

    part: OutputText | ReasoningText
    content_index: int = 0


class PieceEvent(InItem, kw_only=True):
    """response.*.delta."""

    delta: str
    content_index: int | UnsetType = UNSET
    logprobs: list[str] | UnsetType = UNSET


class WholeEvent(InItem, kw_only=True):
    """response.*.done; what is done is in the field that its type names."""

    text: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    input: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    logprobs: list[str] | UnsetType = UNSET
