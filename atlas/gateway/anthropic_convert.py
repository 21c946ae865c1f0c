"""Anthropic's requests as our `Prompt`; whatever cannot be honoured is refused here, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from atlas.errors import BadRequest, Unsupported
from atlas.gateway import anthropic_wire as wire
from atlas.gateway.convert import refuse_unsupported
from atlas.types import Capabilities, Message, Prompt, Sampling, Tool, ToolCall

# Claude Code puts this line into the system prompt; it changes with every request and would spoil the prefix cache.
# https://github.com/anthropics/claude-code/issues/68900
BILLING_HEADER = "x-anthropic-billing-header:"


def messages_prompt(request: wire.MessagesRequest, capabilities: Capabilities, *, owner: str) -> Prompt:
    """The prompt a request asks for. Raises as `counted_prompt`."""
    return msgspec.structs.replace(
        counted_prompt(request, capabilities, owner=owner),
        sampling=(Sampling(temperature=request.temperature, top_p=request.top_p, top_k=_top_k(request.top_k)),),
        stop=tuple(text for text in request.stop_sequences or () if text),
        max_tokens=request.max_tokens,
    )


def counted_prompt(request: wire.CountTokensRequest, capabilities: Capabilities, *, owner: str) -> Prompt:
    """The part of the prompt that decides how long it is.

    Raises:
        BadRequest: fields contradict each other.
        Unsupported: a field that this server, or this model, cannot honour.
    """
    refuse_unsupported(request)
    messages = to_messages(request)
    if messages[-1].role == "assistant":
        raise Unsupported("messages: this server cannot continue an assistant message; end with a user message", param="messages")
    thinking, budget = to_thinking(request.thinking, capabilities)
    choice = request.tool_choice
    return Prompt(
        model=capabilities.model,
        messages=messages,
        tools=tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())),
        tool_choice=to_tool_choice(choice),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        json_schema=_schema(request.output_config, capabilities),
        thinking=thinking,
        thinking_budget_tokens=budget,
        owner=owner,
    )


def to_messages(request: wire.CountTokensRequest) -> tuple[Message, ...]:
    messages = []
    if system := system_text(request.system):
        messages.append(Message(role="system", content=system))
    for i, message in enumerate(request.messages):
        messages += _turn(message, f"messages[{i}].content")
    if not messages:
        raise BadRequest("messages: all of them are empty", param="messages")
    return tuple(messages)


def system_text(system: str | list[wire.Block] | None) -> str:
    """The system prompt without the lines that differ in every request."""
    texts = [system or ""] if not isinstance(system, list) else [_text(block, f"system[{i}]") for i, block in enumerate(system)]
    lines = [line for text in texts for line in text.split("\n") if not line.startswith(BILLING_HEADER)]
    return "\n".join(lines).strip("\n")


def _turn(message: wire.MessageParam, where: str) -> list[Message]:
    blocks = [wire.Block(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    named = [(block, f"{where}[{i}]") for i, block in enumerate(blocks)]
    if message.role == "assistant":
        return [_assistant(named)]
    results = [_result(block, place) for block, place in named if block.type == "tool_result"]
    texts = [_text(block, place) for block, place in named if block.type != "tool_result"]
    return results + ([Message(role=message.role, content="\n".join(texts))] if texts else [])


def _assistant(blocks: Sequence[tuple[wire.Block, str]]) -> Message:
    texts, thoughts, calls = [], [], []
    for block, place in blocks:
        if block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type == "tool_use":
            calls.append(_call(block, place))
        elif block.type != "redacted_thinking":  # encrypted for Anthropic: unreadable here
            texts.append(_text(block, place))
    return Message(role="assistant", content="\n".join(texts), reasoning="\n".join(thoughts), tool_calls=tuple(calls))


def _call(block: wire.Block, place: str) -> ToolCall:
    if not block.id or not block.name:
        raise BadRequest(f"{place}: a tool_use block needs `id` and `name`", param=place)
    return ToolCall(id=block.id, name=block.name, arguments=msgspec.json.encode(block.input or {}).decode())


def _result(block: wire.Block, place: str) -> Message:
    if not block.tool_use_id:
        raise BadRequest(f"{place}: a tool_result block needs `tool_use_id`", param=place)
    parts = block.content if isinstance(block.content, list) else [wire.Block(type="text", text=block.content or "")]
    text = "\n".join(_text(part, f"{place}.content[{i}]") for i, part in enumerate(parts))
    return Message(role="tool", tool_call_id=block.tool_use_id, content=f"Error: {text}" if block.is_error else text)


def _text(block: wire.Block, place: str) -> str:
    if block.type != "text":
        raise Unsupported(f"{place}: {block.type[:40]!r} blocks are not supported here, only text", param=f"{place}.type")
    if block.text is None:
        raise BadRequest(f"{place}: a text block needs `text`", param=f"{place}.text")
    return block.text


def _tool(tool: wire.ToolParam, place: str) -> Tool:
    if tool.type not in (None, "custom"):
        message = f"{place}: {tool.type!r} is a tool that Anthropic runs; this server runs none"
        raise Unsupported(message, param=f"{place}.type")
    if tool.input_schema is None:
        raise BadRequest(f"{place}.input_schema: missing", param=f"{place}.input_schema")
    return Tool(name=tool.name, description=tool.description or "", parameters=tool.input_schema)


def to_tool_choice(choice: wire.ToolChoiceParam | None) -> str:
    if choice is None:
        return "auto"
    if choice.type == "tool":
        if not choice.name:
            raise BadRequest("tool_choice.name: missing", param="tool_choice.name")
        return f"tool:{choice.name}"
    return "required" if choice.type == "any" else choice.type


def to_thinking(thinking: wire.ThinkingParam | None, capabilities: Capabilities) -> tuple[bool | None, int | None]:
    """(whether to think, for how many tokens at most). Unlike OpenAI's clients, Anthropic's expect none unless they ask."""
    if not capabilities.thinking:
        return None, None
    if thinking is None or thinking.type == "disabled":
        return False, None
    return (True if thinking.type == "enabled" else None), thinking.budget_tokens


def _top_k(top_k: int | None) -> int | None:
    return None if top_k is None else max(top_k, 0)


def _schema(config: wire.OutputConfig | None, capabilities: Capabilities) -> dict[str, Any] | None:
    if config is None or config.format is None:
        return None
    if not capabilities.json_schema:
        message = f"output_config.format: model {capabilities.model!r} cannot be held to a schema here"
        raise Unsupported(message, param="output_config.format")
    return config.format.schema
