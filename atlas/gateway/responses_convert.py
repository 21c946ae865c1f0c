"""Requests of OpenAI's Responses API as our `Prompt`; whatever cannot be honoured is refused here, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from atlas.errors import BadRequest, Unsupported
from atlas.gateway import responses_wire as wire
from atlas.gateway.convert import EFFORT_BUDGETS, refuse_unsupported
from atlas.types import Capabilities, Message, Prompt, Sampling, Tool, ToolCall

Read = TypeVar("Read")
AnyTool = wire.FunctionTool | wire.CustomTool
TEXT_TYPES = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text"})
CUSTOM_SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
# What these stand for lies on OpenAI's machines, and the answer would be given without it.
REFUSED_ITEMS = {
    "item_reference": "send the item itself, or name the answer that it was part of in previous_response_id",
    "compaction": "its content is encrypted; send the items it stands for",
    "compaction_summary": "its content is encrypted; send the items it stands for",
}


def response_prompt(
    request: wire.ResponseRequest,
    tools: Sequence[AnyTool],
    capabilities: Capabilities,
    *,
    owner: str,
    before: Sequence[dict[str, Any]] = (),
    added: Sequence[dict[str, Any]],
) -> Prompt:
    """The prompt a request asks for: its items, `added`, after those `before`, with the tools that `read_tools` found in it.

    Raises:
        BadRequest: fields contradict each other.
        Unsupported: a field that this server, or this model, cannot honour.
    """
    refuse_unsupported(request)
    allowed, choice = to_tool_choice(request.tool_choice, [to_tool(tool) for tool in tools])
    thinking, budget = to_thinking(request.reasoning, capabilities)
    return Prompt(
        model=capabilities.model,
        messages=to_messages(request.instructions, before, added),
        sampling=(Sampling(temperature=request.temperature, top_p=request.top_p),),
        max_tokens=request.max_output_tokens,
        tools=tuple(allowed),
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        json_schema=to_schema(request.text, capabilities),
        thinking=thinking,
        thinking_budget_tokens=budget,
        owner=owner,
    )


# -- input --


def to_messages(
    instructions: str | None, before: Sequence[dict[str, Any]], added: Sequence[dict[str, Any]]
) -> tuple[Message, ...]:
    """The conversation: instructions first, and an assistant's reasoning, words and calls as one turn."""
    given = [*before, *added]
    turns: list[Message] = [Message(role="system", content=instructions)] if instructions else []
    for i, item in enumerate(given):
        for message in _message(item, f"input[{i - len(before)}]" if i >= len(before) else "previous_response_id"):
            if turns and _joins(turns, message):
                turns[-1] = _joined(turns[-1], message)
            else:
                turns.append(message)
    # Thinking that led to nothing (its answer was cut, say) would be an empty turn.
    said = [turn for turn in turns if turn.role != "assistant" or turn.content or turn.tool_calls]
    is_asked = any(turn.role != "system" for turn in said) or any(_is_message(item) for item in given)
    if not said or not is_asked:
        raise BadRequest("input: none of its items can be answered; send a message", param="input")
    return tuple(said)


def _is_message(item: dict[str, Any]) -> bool:
    return bool(item.get("type", "message") == "message")


def _message(item: dict[str, Any], where: str) -> Iterator[Message]:
    """The item as a piece of a turn; of a type that we do not know, nothing."""
    kind = item.get("type", "message")
    if reason := REFUSED_ITEMS.get(kind) if isinstance(kind, str) else None:
        raise Unsupported(f"{where}: {kind!r} items are not supported: {reason}", param=f"{where}.type")
    match kind:
        case "message":
            yield _said(read(item, wire.InputMessage, where), where)
        case "reasoning":
            yield _thought(read(item, wire.InputReasoning, where), where)
        case "function_call":
            call = read(item, wire.InputCall, where)
            yield _called(call.call_id, call.name, call.arguments)
        case "custom_tool_call":
            custom = read(item, wire.InputCustomCall, where)
            yield _called(custom.call_id, custom.name, msgspec.json.encode({"input": custom.input}).decode())
        case "function_call_output" | "custom_tool_call_output":
            result = read(item, wire.InputCallOutput, where)
            yield Message(role="tool", tool_call_id=result.call_id, content=to_text(result.output, f"{where}.output"))


def _said(message: wire.InputMessage, where: str) -> Message:
    return Message(
        role="system" if message.role == "developer" else message.role, content=to_text(message.content, f"{where}.content")
    )


def _thought(reasoning: wire.InputReasoning, where: str) -> Message:
    return Message(role="assistant", reasoning=to_text(reasoning.content or reasoning.summary or "", where))


def _called(call_id: str, name: str, arguments: str) -> Message:
    return Message(role="assistant", tool_calls=(ToolCall(id=call_id, name=name, arguments=arguments),))


def _joins(turns: Sequence[Message], message: Message) -> bool:
    """An assistant's items make one turn; so do the system messages at the start, as many templates allow only one."""
    if turns[-1].role != message.role:
        return False
    return message.role == "assistant" or (message.role == "system" and len(turns) == 1)


def _joined(first: Message, second: Message) -> Message:
    separator = "\n\n" if first.role == "system" else "\n"
    return Message(
        role=first.role,
        content=separator.join(filter(None, (first.content, second.content))),
        reasoning="\n".join(filter(None, (first.reasoning, second.reasoning))),
        tool_calls=first.tool_calls + second.tool_calls,
    )


def to_text(content: str | list[wire.Part], where: str) -> str:
    """The text of some content; parts that are not text are refused by their type."""
    if isinstance(content, str):
        return content
    return "\n".join(_part_text(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part_text(part: wire.Part, where: str) -> str:
    if part.type != "refusal" and part.type not in TEXT_TYPES:
        raise Unsupported(f"{where}: {part.type[:40]!r} parts are not supported, only text", param=f"{where}.type")
    text = part.refusal if part.type == "refusal" else part.text
    if text is None:
        raise BadRequest(f"{where}: a text part needs `text`", param=f"{where}.text")
    return text


def read(item: dict[str, Any], kind: type[Read], where: str) -> Read:
    """The object as one of the wire's structs. Raises BadRequest, in msgspec's words, if it is none."""
    try:
        return msgspec.convert(item, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{where}: {error}", param=where) from None


# -- tools --


def read_tools(request: wire.ResponseRequest) -> list[AnyTool]:
    """The tools that the caller runs. Those that OpenAI would run are passed over: agents list them whatever the server."""
    found: list[AnyTool] = []
    for i, tool in enumerate(request.tools or ()):
        if tool.get("type") == "function":
            found.append(read(tool, wire.FunctionTool, f"tools[{i}]"))
        elif tool.get("type") == "custom":
            found.append(read(tool, wire.CustomTool, f"tools[{i}]"))
    return found


def to_tool(tool: AnyTool) -> Tool:
    """A custom tool becomes a function of one text."""
    if isinstance(tool, wire.CustomTool):
        return Tool(name=tool.name, description=_custom_description(tool), parameters=CUSTOM_SCHEMA)
    return Tool(name=tool.name, description=tool.description or "", parameters=tool.parameters or {}, strict=tool.strict or False)


def _custom_description(tool: wire.CustomTool) -> str:
    description = tool.description or ""
    if tool.format is None or not tool.format.definition:
        return description
    return f"{description}\n\n`input` follows this {tool.format.syntax or ''} grammar:\n{tool.format.definition}".lstrip()


def to_tool_choice(choice: str | wire.ToolChoice | None, tools: list[Tool]) -> tuple[list[Tool], str]:
    """The tools the model may call, and which of them it must."""
    if isinstance(choice, wire.ToolChoice):
        return _chosen(choice, tools)
    if choice not in (None, "auto", "none", "required"):
        raise BadRequest(f"tool_choice: {choice[:40]!r} is not auto, none, required or a tool", param="tool_choice")
    if choice == "required" and not tools:
        raise BadRequest("tool_choice: 'required' needs tools of type function or custom", param="tool_choice")
    return tools, choice or "auto"


def _chosen(choice: wire.ToolChoice, tools: list[Tool]) -> tuple[list[Tool], str]:
    if choice.type in ("function", "custom") and choice.name:
        return _only([choice.name], tools), f"tool:{choice.name}"
    if choice.type == "allowed_tools" and choice.tools is not None:
        names = [ref.name for ref in choice.tools if ref.type in ("function", "custom") and ref.name]
        if choice.mode == "required" and not names:
            raise BadRequest("tool_choice: 'required' needs tools of type function or custom", param="tool_choice")
        return _only(names, tools), choice.mode
    raise BadRequest(
        f"tool_choice: type {choice.type[:40]!r} is unknown, incomplete, or of a tool that this server does not run",
        param="tool_choice",
    )


def _only(names: list[str], tools: list[Tool]) -> list[Tool]:
    known = {tool.name for tool in tools}
    for name in names:
        if name not in known:
            raise BadRequest(f"tool_choice: {name[:128]!r} is not among the tools", param="tool_choice")
    return [tool for tool in tools if tool.name in names]


# -- thinking, formats --


def to_thinking(reasoning: wire.Reasoning | None, capabilities: Capabilities) -> tuple[bool | None, int | None]:
    """(whether to think, for how many tokens at most), as for chat's `reasoning_effort`."""
    effort = reasoning.effort if reasoning else None
    if effort is None or not capabilities.thinking:
        return None, None
    return effort != "none", EFFORT_BUDGETS.get(effort)


def to_schema(text: wire.TextOptions | None, capabilities: Capabilities) -> dict[str, Any] | None:
    """The JSON schema the answer has to follow; `{}` is any object."""
    wanted = text.format if text else None
    if wanted is None or wanted.type == "text":
        return None
    if not capabilities.json_schema:
        raise Unsupported(f"text.format: model {capabilities.model!r} cannot be held to a schema here", param="text.format")
    if wanted.type == "json_object":
        return {}
    if wanted.schema is UNSET:
        raise BadRequest("text.format.schema: missing", param="text.format.schema")
    return wanted.schema
