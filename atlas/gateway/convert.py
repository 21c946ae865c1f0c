"""OpenAI's chat requests as our `Prompt`; whatever cannot be honoured is refused here, by name."""

from __future__ import annotations

import functools
import itertools
from typing import Any, get_type_hints

from atlas.errors import BadRequest, Unsupported
from atlas.gateway import wire
from atlas.types import Capabilities, Message, Prompt, Sampling, Tool, ToolCall

# Tokens of thinking per effort; None is no bound. The first three are the values most clients already assume (LiteLLM's).
EFFORT_BUDGETS: dict[str, int | None] = {"minimal": 512, "low": 1024, "medium": 2048, "high": None, "xhigh": None, "max": None}


def chat_prompt(request: wire.ChatCompletionRequest, capabilities: Capabilities, *, owner: str) -> Prompt:
    """The prompt a chat request asks for.

    Raises:
        BadRequest: fields contradict each other.
        Unsupported: a field that this server, or this model, cannot honour.
    """
    check_sampling_fields(request)
    if any(kind != "text" for kind in request.modalities or ()):
        raise Unsupported("modalities: this server answers with text only", param="modalities")
    tools, tool_choice = to_tools(request)
    thinking, budget = to_thinking(request, capabilities)
    schema = to_schema(request)
    if schema is not None and not capabilities.json_schema:
        raise Unsupported(
            f"response_format: model {capabilities.model!r} cannot be held to a schema here", param="response_format"
        )
    return Prompt(
        model=capabilities.model,
        messages=tuple(to_message(message, f"messages[{i}]") for i, message in enumerate(request.messages)),
        sampling=(to_sampling(request),),
        n=request.n or 1,
        stop=to_stop(request.stop),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        json_schema=schema,
        grammar=request.grammar or None,
        top_logprobs=to_top_logprobs(request),
        thinking=thinking,
        thinking_budget_tokens=budget,
        owner=owner,
    )


def check_sampling_fields(request: wire.SamplingFields) -> None:
    """Refuse what asks for another way of sampling than ours."""
    refuse_unsupported(request)
    if request.best_of and request.best_of != (request.n or 1):
        raise Unsupported("best_of: ask for n answers instead, and choose among them", param="best_of")


def refuse_unsupported(request: wire.Wire) -> None:
    """Refuse what the wire declares as `NotSupported`, if it asks for anything."""
    fields = refused_fields(type(request))
    if not any(map(getattr, itertools.repeat(request), fields)):  # nearly always
        return
    for field in fields:
        value = getattr(request, field)
        if value and value != "none":
            raise Unsupported(f"{field}: this server does not support it; leave it out", param=field)


@functools.cache
def refused_fields(request: type[wire.Wire]) -> tuple[str, ...]:
    return tuple(name for name, kind in get_type_hints(request, include_extras=True).items() if kind == wire.NotSupported)


# -- messages --


def to_message(message: wire.ChatMessage, where: str) -> Message:
    if message.role == "tool" and not message.tool_call_id:
        raise BadRequest(f"{where}.tool_call_id: a tool message names the call it answers", param=f"{where}.tool_call_id")
    if message.role != "assistant" and message.content is None:
        raise BadRequest(f"{where}.content: a {message.role} message needs content", param=f"{where}.content")
    calls = tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments) for call in message.tool_calls or ()
    )
    return Message(
        role="system" if message.role == "developer" else message.role,
        content=to_text(message.content, f"{where}.content"),
        reasoning=message.reasoning_content or "",
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def to_text(content: str | list[wire.ContentPart] | None, where: str) -> str:
    """The text of a message; parts that are not text are refused by their type."""
    if not isinstance(content, list):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "refusal"):
            raise Unsupported(f"{where}[{i}]: {part.type[:40]!r} parts are not supported, only text", param=f"{where}[{i}].type")
        if text is None:
            raise BadRequest(f"{where}[{i}]: a text part needs `text`", param=f"{where}[{i}].text")
        texts.append(text)
    return "\n".join(texts)


# -- tools --


def to_tools(request: wire.ChatCompletionRequest) -> tuple[tuple[Tool, ...], str]:
    """The tools the model may call, and which of them it must."""
    tools = tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ()))
    choice = request.tool_choice
    if isinstance(choice, wire.ToolChoice):
        return _chosen(choice, tools)
    if choice not in (None, "auto", "none", "required"):
        raise BadRequest(f"tool_choice: {choice[:40]!r} is not auto, none, required or a tool", param="tool_choice")
    if choice == "required" and not tools:
        raise BadRequest("tool_choice: 'required' needs tools", param="tool_choice")
    return tools, choice or "auto"


def _tool(tool: wire.ToolDefinition, where: str) -> Tool:
    if tool.type != "function":
        raise Unsupported(f"{where}.type: {tool.type[:40]!r} tools are not supported, only functions", param=f"{where}.type")
    if tool.function is None:
        raise BadRequest(f"{where}.function: a function tool needs `function`", param=f"{where}.function")
    function = tool.function
    return Tool(
        name=function.name,
        description=function.description or "",
        parameters=function.parameters or {},
        strict=function.strict or False,
    )


def _chosen(choice: wire.ToolChoice, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], str]:
    if choice.type == "function" and choice.function:
        return _only([choice.function.name], tools), f"tool:{choice.function.name}"
    if choice.type == "allowed_tools" and choice.allowed_tools:
        names = [ref.function.name for ref in choice.allowed_tools.tools if ref.function]
        return _only(names, tools), choice.allowed_tools.mode
    raise BadRequest(f"tool_choice: type {choice.type[:40]!r} is unknown or incomplete", param="tool_choice")


def _only(names: list[str], tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    known = {tool.name for tool in tools}
    for name in names:
        if name not in known:
            raise BadRequest(f"tool_choice: {name!r} is not among the tools", param="tool_choice")
    return tuple(tool for tool in tools if tool.name in names)


# -- sampling, bounds, formats --


def to_sampling(request: wire.SamplingFields) -> Sampling:
    return Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=None if request.top_k is None else max(request.top_k, 0),
        min_p=request.min_p,
        seed=request.seed,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        repetition_penalty=request.repetition_penalty or request.repeat_penalty or 1.0,
        logit_bias=_logit_bias(request.logit_bias or {}),
    )


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    """JSON has string keys only; each has to be a token id."""
    for key in bias:
        if not key.isascii() or not key.isdigit():
            raise BadRequest(f"logit_bias: {key[:40]!r} is not a token id", param="logit_bias")
    return {int(key): value for key, value in bias.items()}


def to_stop(stop: str | list[str] | None) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else stop or []
    return tuple(text for text in texts if text)


def to_schema(request: wire.ChatCompletionRequest) -> dict[str, Any] | None:
    """The JSON schema the answer has to follow; `{}` is any object."""
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return request.json_schema
    if request.json_schema is not None:
        raise BadRequest("json_schema: response_format says already what the answer has to be; send one", param="json_schema")
    if wanted.type == "json_object":
        return wanted.schema or {}
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise BadRequest("response_format.json_schema.schema: missing", param="response_format.json_schema.schema")
    return wanted.json_schema.schema


def to_top_logprobs(request: wire.ChatCompletionRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise BadRequest("top_logprobs: needs logprobs = true", param="top_logprobs")
    return None


def to_thinking(request: wire.ChatCompletionRequest, capabilities: Capabilities) -> tuple[bool | None, int | None]:
    """(whether to think, for how many tokens at most). A model that never thinks has nothing to switch."""
    if not capabilities.thinking:
        return None, None
    thinking, budget = None, request.thinking_budget_tokens
    wanted = (request.chat_template_kwargs or {}).get("enable_thinking")
    if isinstance(wanted, bool):
        thinking = wanted
    elif request.reasoning_effort is not None:
        thinking = request.reasoning_effort != "none"
        budget = EFFORT_BUDGETS.get(request.reasoning_effort) if budget is None else budget
    if budget == 0:
        return False, None
    return (thinking, None) if thinking is False else (thinking, budget)
