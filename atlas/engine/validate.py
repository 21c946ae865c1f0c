"""What every engine refuses before it generates anything, in one place and in the same words."""

from __future__ import annotations

from atlas.errors import BadRequest, ContextLengthExceeded, ModelNotFound, Unsupported
from atlas.types import Capabilities, Prompt

MAX_TOP_LOGPROBS = 20
CHOICES = ("auto", "none", "required")


def check_prompt(prompt: Prompt, can: Capabilities) -> None:
    """Refuse what is wrong in itself, and what this engine does not declare it can honour.

    Raises:
        ModelNotFound: the prompt asks for another model.
        BadRequest: a value is out of range, or parts contradict each other.
        Unsupported: the prompt asks for something outside `can`.
    """
    if prompt.model not in ("", can.model):
        raise ModelNotFound(f"model '{prompt.model}' is not here; this engine runs '{can.model}'", param="model")
    _check_source(prompt)
    _check_numbers(prompt, can)
    _check_tools(prompt)
    _check_grammar(prompt)
    _check_abilities(prompt, can)


def check_length(prompt_tokens: int, prompt: Prompt, context_tokens: int) -> int:
    """Tokens each candidate may generate at most: `max_tokens`, but no more than the rest of the context.

    Clients send a `max_tokens` for the largest model they know; refusing it would help nobody.

    Raises:
        ContextLengthExceeded: the prompt leaves no room for an answer.
    """
    room = context_tokens - prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"this model's maximum context length is {context_tokens} tokens; the prompt has {prompt_tokens}: shorten it",
            param="messages" if prompt.messages else "prompt",
        )
    return room if prompt.max_tokens is None else min(room, prompt.max_tokens)


def _check_source(prompt: Prompt) -> None:
    sources = [bool(prompt.messages), prompt.text is not None, prompt.tokens is not None]
    if sum(sources) != 1:
        raise BadRequest("a prompt has exactly one of messages, text and tokens", param="messages")
    if prompt.tokens is not None and not prompt.tokens:
        raise BadRequest("the prompt has no tokens", param="prompt")
    if prompt.suffix is not None and prompt.text is None:
        raise BadRequest("a suffix goes with a text prompt only", param="suffix")


def _check_numbers(prompt: Prompt, can: Capabilities) -> None:
    if not 1 <= prompt.n <= can.max_candidates:
        raise BadRequest(f"n is {prompt.n}; it must lie in 1..{can.max_candidates}", param="n")
    if len(prompt.sampling) not in (1, prompt.n):
        raise BadRequest(
            f"{len(prompt.sampling)} sampling settings for n={prompt.n} candidates: give one, or one each", param="n"
        )
    if prompt.max_tokens is not None and prompt.max_tokens < 1:
        raise BadRequest(f"max_tokens is {prompt.max_tokens}; it must be at least 1", param="max_tokens")
    if prompt.allowance_tokens is not None and prompt.allowance_tokens < 0:
        raise BadRequest(f"allowance_tokens is {prompt.allowance_tokens}; it must be at least 0", param="allowance_tokens")
    if prompt.top_logprobs is not None and not 0 <= prompt.top_logprobs <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"top_logprobs is {prompt.top_logprobs}; it must lie in 0..{MAX_TOP_LOGPROBS}", param="top_logprobs")


def _check_tools(prompt: Prompt) -> None:
    names = [tool.name for tool in prompt.tools]
    choice = prompt.tool_choice
    if choice.startswith("tool:") and choice.removeprefix("tool:") not in names:
        raise BadRequest(f"tool_choice names '{choice[5:]}', which is not among the tools {names}", param="tool_choice")
    if choice not in CHOICES and not choice.startswith("tool:"):
        raise BadRequest(f"tool_choice is '{choice}'; it must be one of {', '.join(CHOICES)} or name a tool", param="tool_choice")
    if choice == "required" and not names:
        raise BadRequest("tool_choice is 'required', but there are no tools", param="tool_choice")


def _check_grammar(prompt: Prompt) -> None:
    is_bound = prompt.json_schema is not None or (prompt.tools and prompt.tool_choice != "none")
    if prompt.grammar is not None and is_bound:
        raise BadRequest("grammar: binds the whole answer, so it goes with neither tools nor a schema", param="grammar")


def _check_abilities(prompt: Prompt, can: Capabilities) -> None:
    wanted = {
        "tools": (bool(prompt.tools) and prompt.tool_choice != "none", can.tools),
        "grammar": (prompt.grammar is not None, can.grammar),
        "json_schema": (prompt.json_schema is not None, can.json_schema),
        "logprobs": (prompt.top_logprobs is not None, can.logprobs),
        "features": (prompt.features, can.features),
        "suffix": (prompt.suffix is not None, can.fill_in_middle),
    }
    for name, (is_asked, is_there) in wanted.items():
        if is_asked and not is_there:
            raise Unsupported(f"model '{can.model}' does not support {name} here", param=name)
