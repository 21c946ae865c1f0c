"""What an answer must look like, token by token: JSON schemas, tool calls and GBNF, by llguidance.

Schemas come from strangers. llguidance answers a bad one with an error message and bounds much of its own work by fuel; what it
does not bound, schema_bounds.py does, and grammars are built on a thread with a deep stack. Measured 2026-11 (llguidance 1.9.1),
within the bounds, over the hostile schemas of the tests and a vocabulary of 151,936: at most 0.4 s to build, 10 ms for a mask; an
ordinary schema takes 5 ms and 0.04 ms.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from atlas.engine.gbnf import to_lark
from atlas.engine.parse import CALL, CALL_END
from atlas.engine.schema_bounds import bounded
from atlas.errors import BadRequest, Unsupported
from atlas.types import Prompt, Tool

MAX_GRAMMAR_BYTES = 256 * 1024  # all tools of one request together
_stack_bytes = 64 * 1024 * 1024
_num_kept = 32  # grammars; agents send the same tools with every turn

# Between JSON tokens: nothing, a space, or a new line with its indentation. A small model that may write any amount of white
# space writes little else.
_json_options = {"whitespace_pattern": r"( |\n {0,16})?"}
_unsupported = ("Unimplemented", "Unknown format", "not supported")

T = TypeVar("T")


class Grammars:
    """Compiles grammars for one vocabulary and keeps the last few. Safe to use from several threads."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        self._tokenizer = tokenizer
        self._limits = LLParserLimits(verbose_errors=False, precompute_large_lexemes=False)
        self._call_tag, self._call_end_tag = self._tag(CALL), self._tag(CALL_END)
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._of_tools: OrderedDict[bytes, str | None] = OrderedDict()  # by the digest of the tools: each is examined once
        self._lock = threading.Lock()
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def compile(self, prompt: Prompt) -> str | None:
        """What `grammar`, `json_schema`, `tool_choice`, `parallel_tool_calls` and strict tools ask for; None if nothing does.

        Arguments of tools follow their schemas where llguidance can express them; only a strict tool insists on it.

        Raises:
            BadRequest: a schema or a grammar is wrong, contradicts itself, or is too large.
            Unsupported: a schema needs a keyword that cannot be enforced.
        """
        if prompt.grammar is not None:
            return self._from_gbnf(prompt.grammar)
        grammar = self._grammar(prompt)
        if grammar is not None:
            if len(grammar) > MAX_GRAMMAR_BYTES:
                raise BadRequest(f"the tools' schemas have {len(grammar)} bytes; at most {MAX_GRAMMAR_BYTES}", param="tools")
            self.start(grammar)
        return grammar

    def calls(self, prompt: Prompt) -> str | None:
        """What each call has to look like where the model may call tools or not, and nothing else is asked of its answer.

        None if the vocabulary opens calls with no token of its own, or the tools are too many or too odd to hold a call to them:
        what need not be enforced refuses no request.
        """
        if not prompt.tools or prompt.tool_choice != "auto" or self._call_tag != CALL:
            return None
        key = hashlib.blake2b(msgspec.json.encode(prompt.tools), digest_size=32).digest()
        with self._lock:
            if key in self._of_tools:
                self._of_tools.move_to_end(key)
                return self._of_tools[key]
        grammar = self._calls_of(prompt.tools)
        with self._lock:
            self._of_tools[key] = grammar
            while len(self._of_tools) > _num_kept:
                self._of_tools.popitem(last=False)
        return grammar

    def _calls_of(self, tools: Sequence[Tool]) -> str | None:
        try:
            grammar = _lark("call", call=self._call_rule(tools))
            if len(grammar) <= MAX_GRAMMAR_BYTES:
                self.start_calls(grammar)
                return grammar
        except BadRequest:
            pass
        return None

    def start_calls(self, grammar: str) -> CallMatcher:
        """A matcher for an answer of free text with calls in it."""
        [tag] = self._tokenizer.tokenize_str(CALL, parse_special=True)
        return CallMatcher(self._matcher(grammar, what="tools", param="tools"), tag)

    def _from_gbnf(self, text: str) -> str:
        grammar = to_lark(text)
        self.start(grammar, what="grammar", param="grammar")
        return grammar

    def start(self, grammar: str, *, what: str = "schema", param: str = "response_format") -> Matcher:
        """A matcher at the beginning of a grammar; cheap if the grammar was compiled lately. `what`, `param`: named in an error.

        Raises:
            BadRequest: the grammar is too large for llguidance.
        """
        return Matcher(self._matcher(grammar, what=what, param=param))

    def close(self) -> None:
        self._builder.shutdown()

    def _matcher(self, grammar: str, *, what: str, param: str) -> LLMatcher:
        with self._lock:
            first = self._kept.get(grammar)
            if first is not None:
                self._kept.move_to_end(grammar)
        return first.deep_copy() if first is not None else self._build(grammar, what=what, param=param)

    def _build(self, grammar: str, *, what: str, param: str) -> LLMatcher:
        try:
            matcher = self._deep(lambda: LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits))
        except ValueError as error:
            raise _error(str(error), what=what, param=param) from error
        if matcher.is_error():
            raise _error(matcher.get_error(), what=what, param=param)
        with self._lock:
            self._kept[grammar] = matcher
            while len(self._kept) > _num_kept:
                self._kept.popitem(last=False)
        return matcher.deep_copy()

    def _deep(self, work: Callable[[], T]) -> T:
        """Run on the thread with the deep stack; the size holds for threads started meanwhile, which does no harm.

        Raises:
            ValueError: llguidance panicked. (1.9.1 does, when it quotes a bad schema and cuts it inside a character.)
        """
        old = threading.stack_size(_stack_bytes)
        try:
            future = self._builder.submit(work)
        finally:
            threading.stack_size(old)
        panic = future.exception()
        if type(panic).__module__ == "pyo3_runtime":  # a BaseException that has no name to import
            raise ValueError("the grammar compiler cannot make sense of it") from panic
        return future.result()

    def _tag(self, text: str) -> str:
        """A tag as Lark writes it: as a token if the vocabulary has it, else as text."""
        ids = self._tokenizer.tokenize_str(text, parse_special=True)
        is_token = len(ids) == 1 and self._tokenizer.is_special_token(ids[0])
        return text if is_token else json.dumps(text)

    # -- from a prompt to Lark --

    def _grammar(self, prompt: Prompt) -> str | None:
        tools = () if prompt.tool_choice == "none" else prompt.tools
        if prompt.tool_choice.startswith("tool:"):
            tools = tuple(tool for tool in tools if tool.name == prompt.tool_choice.removeprefix("tool:"))
        answer = None if prompt.json_schema is None else f"%json {self._answer_schema(prompt.json_schema)}"
        if tools:
            return self._tools_grammar(prompt, tools, answer)
        return None if answer is None else _lark("NEWLINES answer", answer=answer)

    def _tools_grammar(self, prompt: Prompt, tools: Sequence[Tool], answer: str | None) -> str | None:
        must_call = prompt.tool_choice != "auto"
        is_one = prompt.tool_choice.startswith("tool:") or not prompt.parallel_tool_calls
        if not (must_call or is_one or answer is not None or any(tool.strict for tool in tools)):
            return None
        calls = "call" if is_one else 'call ("\\n" call)*'
        if must_call:
            start = f"NEWLINES {calls}"
        elif answer is not None:
            start = f"NEWLINES ({calls} | answer)"
        else:
            start, answer = f"TEXT ({calls})?", None
        return _lark(
            start, answer=None if must_call else answer, call=self._call_rule(tools), text=not must_call and answer is None
        )

    def _call_rule(self, tools: Sequence[Tool]) -> str:
        bodies = [f"{json.dumps(_head(tool))} %json {self._arguments_schema(tool)} {json.dumps('}')}" for tool in tools]
        newline = json.dumps("\n")
        return f"{self._call_tag} {newline} ({' | '.join(bodies)}) {newline} {self._call_end_tag}"

    def _answer_schema(self, schema: dict[str, Any]) -> str:
        text = _dump(bounded(schema or {"type": "object"}, what="schema", param="response_format"))
        if error := self._fault(text):
            raise _error(error, what="schema", param="response_format")
        return text

    def _arguments_schema(self, tool: Tool) -> str:
        """The schema of a tool's arguments, or of any object if it cannot be enforced and need not be."""
        what = f"parameters of tool '{tool.name}'"
        if tool.parameters.get("type", "object") != "object":
            raise BadRequest(f"{what}: type must be 'object'", param="tools")
        text = _dump(bounded({"type": "object", **tool.parameters}, what=what, param="tools"))
        error = self._fault(text)
        if error and tool.strict:
            raise _error(error, what=what, param="tools")
        return _dump({"type": "object"}) if error else text

    def _fault(self, schema: str) -> str:
        """What llguidance has against a schema; empty if nothing."""

        def validate() -> str:
            return str(LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema), limits=self._limits))

        try:
            return self._deep(validate)
        except ValueError as error:  # a panic, or what is JSON to Python but not to Rust: half of a surrogate pair
            return str(error)


class Matcher:
    """Where one answer stands in its grammar. Belongs to the thread that samples.

    Should llguidance run out of fuel half-way (a grammar that is small but ambiguous), nothing more is allowed, so that the
    answer ends there, and `error` says why.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def binds(self) -> bool:
        """Whether the next token has to be one that the grammar allows."""
        return True

    @property
    def is_done(self) -> bool:
        """Nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def may_end(self) -> bool:
        """The answer so far is whole."""
        return bool(self._matcher.is_accepting())

    @property
    def error(self) -> str:
        return str(self._matcher.get_error())

    def mask(self, row: NDArray[np.float32]) -> None:
        """Set the logits of tokens that may not come next to minus infinity, in place. row: (vocabulary,)."""
        bits = b"" if self._matcher.is_error() else self._matcher.compute_bitmask()
        if self._matcher.is_error():  # the mask itself may be what costs too much
            bits = b""
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: row.size].view(np.bool_)
        row[allowed.size :] = -np.inf
        np.copyto(row[: allowed.size], -np.inf, where=~allowed)

    def accept(self, token: int) -> bool:
        """Move on by a token; False if the grammar does not allow it, after which nothing is allowed."""
        return bool(self._matcher.consume_token(token))


class CallMatcher(Matcher):
    """Binds what stands between the tag that opens a call and the one that closes it; all other text is free.

    So a call is whole JSON, of a tool that there is, with arguments that its schema allows, unless the length cuts it off.
    A model cannot end its answer inside of one. If llguidance runs out of fuel the call goes on unbound.
    """

    def __init__(self, matcher: LLMatcher, tag: int) -> None:
        super().__init__(matcher)
        self._tag = tag
        self._is_open = False

    @property
    def binds(self) -> bool:
        return self._is_open

    def mask(self, row: NDArray[np.float32]) -> None:
        free = row.copy()
        super().mask(row)
        if self._matcher.is_error():
            self._is_open = False
            row[:] = free

    def accept(self, token: int) -> bool:
        if not self._is_open:
            if token != self._tag:
                return True
            self._matcher.reset()
            self._is_open = True
        is_allowed = super().accept(token)
        self._is_open = is_allowed and not self.may_end
        return is_allowed


def _lark(start: str, *, answer: str | None = None, call: str | None = None, text: bool = False) -> str:
    """After a think block models write a blank line; hence NEWLINES, which the parser trims."""
    lines = ['%llguidance {"no_forcing": true}', f"start: {start}"]
    if "NEWLINES" in start:
        lines.append("NEWLINES: /\\n{0,2}/")
    if text:
        lines.append("TEXT: /(.|\\n)*/")
    if call is not None:
        lines.append(f"call: {call}")
    if answer is not None:
        lines.append(f"answer: {answer}")
    return "\n".join(lines) + "\n"


def _head(tool: Tool) -> str:
    return '{"name": ' + json.dumps(tool.name, ensure_ascii=False) + ', "arguments": '


def _dump(schema: dict[str, Any]) -> str:
    """A schema on one line, with our own options instead of any that came with it."""
    return json.dumps({**schema, "x-guidance": _json_options})


def _error(message: str, *, what: str, param: str) -> BadRequest:
    text = " ".join(message.split())[:300]
    kind = Unsupported if any(sign in text for sign in _unsupported) else BadRequest
    return kind(f"{what}: {text}", param=param)
