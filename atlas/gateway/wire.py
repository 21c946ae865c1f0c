"""What OpenAI's clients send and expect, field by field; nothing here knows our values.

Requests ignore unknown fields. A field of type `NotSupported` is declared only so that it can be refused by name: it would
change the meaning of the answer, and this server cannot honour it. Null, false, 0, "none" and empty values of it pass.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from atlas.ralph import Proof, TaskResult
from atlas.types import OurFailure

Fraction = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Candidates = Annotated[int, Meta(ge=1, le=128)]
Count = Annotated[int, Meta(ge=1)]
FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
FinishReason = Literal["stop", "length", "tool_calls"]
NotSupported = Annotated[Any, Meta(description="Not supported: refused unless null, false, 0 or empty.")]
Stop = str | Annotated[list[str], Meta(max_length=64)] | None


class Wire(msgspec.Struct, kw_only=True):
    """Base of every object on the wire."""


# -- requests --


class ContentPart(Wire):
    """A part of a message; only text can be read, every other type is refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Wire):
    name: FunctionName
    arguments: str = "{}"


class MessageToolCall(Wire):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class FunctionDefinition(Wire):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Wire):
    type: str
    function: FunctionDefinition | None = None


class FunctionRef(Wire):
    name: FunctionName


class ToolRef(Wire):
    type: str
    function: FunctionRef | None = None


class AllowedTools(Wire):
    mode: Literal["auto", "required"]
    tools: list[ToolRef]


class ToolChoice(Wire):
    """`{"type": "function", "function": {"name": ...}}` or `{"type": "allowed_tools", "allowed_tools": {...}}`."""

    type: str
    function: FunctionRef | None = None
    allowed_tools: AllowedTools | None = None


class JSONSchemaFormat(Wire):
    name: str = ""
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None
    schema: dict[str, Any] | None = None  # llama.cpp: {"type": "json_object", "schema": ...}


class StreamOptions(Wire):
    include_usage: bool | None = None


class Refused(Wire):
    use_beam_search: NotSupported = None
    prompt_logprobs: NotSupported = None
    guided_regex: NotSupported = None
    guided_choice: NotSupported = None
    guided_grammar: NotSupported = None
    guided_json: NotSupported = None
    structured_outputs: NotSupported = None
    ignore_eos: NotSupported = None
    stop_token_ids: NotSupported = None
    include_stop_str_in_output: NotSupported = None
    allowed_token_ids: NotSupported = None
    bad_words: NotSupported = None
    truncate_prompt_tokens: NotSupported = None
    mirostat: NotSupported = None
    dry_multiplier: NotSupported = None
    xtc_probability: NotSupported = None
    min_tokens: NotSupported = None
    lora: NotSupported = None
    prompt_embeds: NotSupported = None


class SamplingFields(Refused, kw_only=True):
    """What chat and plain completions share; `top_k`, `min_p` and the like are llama.cpp's and vLLM's extras."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Candidates | None = None
    seed: int | None = None
    stop: Stop = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Fraction | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0)] | None = None  # llama.cpp's name of the same
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    max_tokens: Count | None = None
    json_schema: dict[str, Any] | None = None  # llama.cpp: short for response_format
    grammar: str | None = None  # llama.cpp: GBNF
    best_of: int | None = None


class ChatCompletionRequest(SamplingFields, kw_only=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    tools: Annotated[list[ToolDefinition], Meta(max_length=512)] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    modalities: list[str] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking_budget_tokens: Annotated[int, Meta(ge=0)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: NotSupported = None
    function_call: NotSupported = None
    audio: NotSupported = None
    web_search_options: NotSupported = None
    continue_final_message: NotSupported = None
    echo: NotSupported = None
    documents: NotSupported = None


# -- replies --


class TopLogprob(Wire):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobs(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Wire):
    content: list[TokenLogprobs]
    refusal: None = None


class PromptTokensDetails(Wire):
    cached_tokens: int = 0


class CompletionTokensDetails(Wire):
    reasoning_tokens: int = 0


class Usage(Wire):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ReplyToolCall(Wire):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ReplyMessage(Wire):
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ReplyToolCall] | UnsetType = UNSET
    refusal: None = None
    role: Literal["assistant"] = "assistant"


class ChatChoice(Wire):
    index: int
    message: ReplyMessage
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None
    length_reason: str | UnsetType = UNSET  # ours: the limit that ended the answer, beside finish_reason "length"


class AtlasObject(Wire):
    """What was proved about an answer of model `atlas`.

    Attributes:
        task_id: null where the loaded model has answered without a task; then nothing was proved.
        failure: what of ours ended the run; says nothing about the code.
    """

    verdict: Proof
    task_id: str | None = None
    code: str | None = None
    ended_by: str | None = None
    num_attempts: int = 0
    num_candidates: int = 0
    num_tokens: int = 0
    sandbox_s: float = 0.0
    wall_s: float = 0.0
    failure: OurFailure | None = None

    @classmethod
    def of(cls, result: TaskResult, *, task_id: str) -> AtlasObject:
        names = ("verdict", "code", "ended_by", "num_attempts", "num_candidates", "num_tokens", "sandbox_s", "wall_s", "failure")
        return cls(task_id=task_id, **{name: getattr(result, name) for name in names})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The same in short."""
        proof = self.verdict
        found = [(b"x-atlas-verdict", proof.status.encode())]
        if proof.tests_run:
            found += [
                (b"x-atlas-tests", b"%d/%d" % (proof.tests_passed, proof.tests_run)),
                (b"x-atlas-tests-source", proof.source.encode()),
                (b"x-atlas-sealed", b"true" if proof.sealed else b"false"),
                (b"x-atlas-tier", (proof.tier or "").encode()),
            ]
        return found


class ChatCompletion(Wire):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    atlas: AtlasObject | UnsetType = UNSET  # ours: of model `atlas` only
    object: Literal["chat.completion"] = "chat.completion"


class FunctionDelta(Wire):
    name: str | UnsetType = UNSET
    arguments: str = ""


class DeltaToolCall(Wire):
    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class MessageDelta(Wire):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[DeltaToolCall] | UnsetType = UNSET


class ChunkChoice(Wire):
    index: int
    delta: MessageDelta
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | None = None
    length_reason: str | UnsetType = UNSET


class ChatCompletionChunk(Wire):
    """One event of a stream; the last one carries `usage` and no choices if it was asked for."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    atlas: AtlasObject | UnsetType = UNSET  # ours: in the last chunk with a choice, of model `atlas` only
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class ModelMeta(Wire):
    """What the loaded model is; the names are llama-server's."""

    n_ctx: int
    n_vocab: int
    n_params: int
    size: int
    architecture: str


class Model(Wire):
    """`max_model_len` is vLLM's name of the context length, `context_length` OpenRouter's; null while unknown.

    `parent`: of "model:adapter", the model.
    """

    id: str
    created: int
    owned_by: str
    is_loaded: bool
    max_model_len: int | None = None
    context_length: int | None = None
    parent: str | None = None
    meta: ModelMeta | None = None
    object: Literal["model"] = "model"


class ModelList(Wire):
    data: list[Model]
    object: Literal["list"] = "list"


class ErrorBody(Wire):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Wire):
    error: ErrorBody
