"""Messages to the text a model was trained on: its chat template, rendered in a sandbox as transformers renders it.

A template comes with the model file, so it is trusted not to loop for ever, but it cannot reach Python. What people write is not
trusted: a control token spelled out in a message stays text (see `segments`). Tags that a vocabulary holds as ordinary tokens,
such as <think>, are not control tokens and pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from atlas.errors import BadRequest, ModelFileError
from atlas.types import Message, Tool, ToolCall

# ChatML with the words by which Qwen models are told of their tools
FALLBACK_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' }}
{{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- elif not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n' if message.content or not loop.first }}
{{- '<tool_call>\\n{"name": ' + call.function.name | tojson + ', "arguments": ' }}
{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# how the common families write control tokens; used where the vocabulary's own list is not given
_usual_control = r"<\|[^\s<>|]{1,64}\|>|<｜[^\s<>｜]{1,64}｜>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]"
_marks = [chr(0x10FF00 + offset) for offset in range(256)]  # private use: nobody's text, most of the time


class ChatFormat:
    """One model's chat template. Immutable, and safe to use from several threads.

    Args:
        template: Jinja source from the model file; None takes ChatML with Qwen's tools.
        bos: text of the token that begins a document, for templates that write it.
        eos: text of the token that ends a turn.
        control: every control token of the vocabulary; without it, the usual spellings are known.

    Raises:
        ModelFileError: the template is not valid Jinja.

    Attributes:
        supports_tools: the template shows tools to the model.
        supports_thinking: the template knows think blocks.
    """

    def __init__(self, template: str | None, *, bos: str = "", eos: str = "", control: Sequence[str] = ()) -> None:
        source = FALLBACK_TEMPLATE if template is None else template
        try:
            self._template = _environment.from_string(source)
            variables = jinja2.meta.find_undeclared_variables(_environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise ModelFileError(f"the model's chat template is not valid Jinja: line {error.lineno}: {error.message}") from error
        self.supports_tools = "tools" in variables
        self.supports_thinking = bool({"enable_thinking", "thinking"} & variables) or "<think>" in source
        self._bos, self._eos = bos, eos
        self._control = _control_pattern([*control, bos, eos], usual=not control)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as one string, as transformers' `apply_chat_template(tokenize=False)` gives it.

        Raises:
            BadRequest: the template refuses these messages, or cannot render them.
        """
        return self._render(list(map(_message, messages)), list(map(_tool, tools)), thinking, add_generation_prompt)

    def segments(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> list[tuple[str, bool]]:
        """The same string in pieces to be tokenised one by one, each with whether control tokens in it are meant.

        There is one piece, unless a message or tool spells a control token: that spelling is a piece of its own, not meant.
        """
        turns, functions = list(map(_message, messages)), list(map(_tool, tools))
        texts = list(_strings([turns, functions]))
        if not any(map(self._control.search, texts)):
            return [(self._render(turns, functions, thinking, add_generation_prompt), True)]
        opened, closed = _unused_marks(texts)
        turns, functions = self._mark([turns, functions], opened, closed)
        return self._split(self._render(turns, functions, thinking, add_generation_prompt), opened, closed)

    @staticmethod
    def opens_reasoning(rendered: str) -> bool:
        """Whether the rendered prompt ends inside a think block that the template has opened."""
        return rendered.rstrip().endswith("<think>")

    def _mark(self, value: Any, opened: str, closed: str) -> Any:
        try:
            return _map_strings(value, lambda text: self._control.sub(rf"{opened}\g<0>{closed}", text))
        except RecursionError as error:
            raise BadRequest("the tools or arguments are nested too deeply", param="tools") from error

    def _split(self, rendered: str, opened: str, closed: str) -> list[tuple[str, bool]]:
        """Cut at the marks. A mark whose partner the template has cut off is dropped, but still separates its neighbours."""
        parts = re.split(f"{opened}({self._control.pattern}){closed}|[{opened}{closed}]", rendered)
        return [(part, index % 2 == 0) for index, part in enumerate(parts) if part]

    def _render(self, messages: Any, tools: Any, thinking: bool | None, add_generation_prompt: bool) -> str:
        wishes = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
        try:
            return self._template.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._bos,
                eos_token=self._eos,
                **wishes,
            )
        # what Python raises inside a template: it was not written for these messages
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise BadRequest(f"the model's chat template cannot render these messages: {error}", param="messages") from error


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant says, for training; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own form

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise BadRequest(f"the model's chat template refuses: {message}", param="messages")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers has it: unlike jinja2's own, `<` and `&` stay what they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _make_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


_environment = _make_environment()


def _control_pattern(control: Sequence[str], *, usual: bool) -> re.Pattern[str]:
    """Matches any control token, the longest first; contains no group."""
    spelled = sorted({re.escape(token) for token in control if token}, key=len, reverse=True)
    return re.compile("|".join([*spelled, *([_usual_control] if usual else [])]) or "(?!)")


def _message(message: Message) -> dict[str, Any]:
    """OpenAI's dictionary, which templates are written for; arguments as an object where they are one."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = list(map(_tool_call, message.tool_calls))
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _tool_call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments if isinstance(arguments, dict) else call.arguments},
    }


def _tool(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included; without recursion, since people's schemas may be deep."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            stack += item


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_strings(key, change): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value


def _unused_marks(texts: Sequence[str]) -> tuple[str, str]:
    """Two characters that nobody has written."""
    used = {mark for mark in _marks for text in texts if mark in text}
    free = [mark for mark in _marks if mark not in used]
    if len(free) < 2:
        raise BadRequest("the messages use up the private-use characters U+10FF00 to U+10FFFF", param="messages")
    return free[0], free[1]
