r"""What a model writes, taken apart while it is being written: thinking, text, and calls of tools.

The format is Qwen3's (and Hermes'): `<think>...</think>`, then text, then any number of
`<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`. What comes out does not depend on how the text was cut into
pieces. What is not a well-formed call comes out as plain text.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from typing import NamedTuple

from atlas.types import ToolCall, ToolCallDelta

THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"

_base62 = string.ascii_letters + string.digits
_in_string = re.compile(r'["\\]')
_outside = re.compile(r'["{}\[\],<]')


class Parsed(NamedTuple):
    """What one piece added."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCallDelta, ...]


def new_call_id() -> str:
    """An id as OpenAI makes them: 24 random base62 characters, 142 bits."""
    return "call_" + "".join(secrets.choice(_base62) for _ in range(24))


class OutputParser:
    """Takes one candidate's text piece by piece. Newlines next to a tag belong to the tag, not to the text.

    A call is announced once its name is known and its arguments begin; from then on they are passed on exactly as generated,
    whole or not. A call that is cut off or breaks off earlier than that is text.

    Args:
        reasoning: think blocks are taken out; otherwise their tags are text.
        in_reasoning: the prompt has already opened a think block.
        tools: calls are taken out; otherwise their tags are text.
    """

    def __init__(self, *, reasoning: bool, in_reasoning: bool, tools: bool) -> None:
        self._tags = ((THINK,) if reasoning else ()) + ((CALL,) if tools else ())
        self._holds_newlines = tools
        self._is_reasoning = reasoning and in_reasoning
        self._buffer = ""
        self._newlines = ""  # seen, and the next tag or text says whether they count
        self._trims = reasoning  # newlines that come next are dropped
        self._closes_call = False  # nothing but newlines since a call: its closing tag may follow
        self._call: CallReader | None = None
        self._calls: list[CallReader] = []
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._deltas: list[ToolCallDelta] = []
        self._seen = (0, 0)

    @property
    def is_reasoning(self) -> bool:
        """Whether the text stands inside a think block."""
        return self._is_reasoning

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in self._calls)

    def feed(self, text: str) -> Parsed:
        """Take the next text; return what it settled."""
        if self._is_at_rest and text and "<" not in text:  # nearly every token of an answer
            self._text.append(text)
            self._seen = (len(self._text), len(self._reasoning))
            return Parsed(text, "", ())
        self._buffer += text
        while self._buffer and self._step():
            pass
        return self._take()

    @property
    def _is_at_rest(self) -> bool:
        """In the midst of text, of which nothing is held back or dropped."""
        is_elsewhere = self._is_reasoning or self._call is not None
        return not (is_elsewhere or self._holds_newlines or self._trims or self._buffer or self._newlines)

    def finish(self) -> Parsed:
        """No more text will come: return what was held back."""
        if self._call is not None:
            self._close_call(self._call)
        if self._is_reasoning:
            self._think(self._buffer)
        else:
            self._say(self._buffer)
            self._text.append(self._newlines)
        self._buffer = self._newlines = ""
        return self._take()

    def _take(self) -> Parsed:
        said, thought = self._seen
        self._seen = (len(self._text), len(self._reasoning))
        deltas, self._deltas = tuple(self._deltas), []
        return Parsed("".join(self._text[said:]), "".join(self._reasoning[thought:]), deltas)

    def _step(self) -> bool:
        """Use up part of the buffer; False when more text is needed."""
        if self._call is not None:
            return self._read_call(self._call)
        return self._read_reasoning() if self._is_reasoning else self._read_text()

    def _cut(self, tags: tuple[str, ...]) -> tuple[str, str | None]:
        """Take the buffer up to the first of `tags` and that tag, or up to what may be the start of one."""
        found = [(at, tag) for tag in tags if (at := self._buffer.find(tag)) >= 0]
        if found:
            at, tag = min(found)
            before, self._buffer = self._buffer[:at], self._buffer[at + len(tag) :]
            return before, tag
        at = self._buffer.rfind("<")
        if at < 0 or not any(tag.startswith(self._buffer[at:]) for tag in tags):
            at = len(self._buffer)
        before, self._buffer = self._buffer[:at], self._buffer[at:]
        return before, None

    # -- text --

    def _read_text(self) -> bool:
        before, tag = self._cut((*self._tags, CALL_END) if self._closes_call else self._tags)
        closes_call = self._closes_call
        self._say(before)
        if tag == CALL_END and not (closes_call and self._closes_call):
            self._say(tag)
        elif tag == CALL_END:
            self._closes_call = False
        elif tag == CALL:
            self._call = CallReader(len(self._calls))
        elif tag == THINK:
            self._is_reasoning = self._trims = True
            self._newlines = ""
        return tag is not None

    def _say(self, piece: str) -> None:
        if self._trims:
            piece = piece.lstrip("\n")
        if not piece:
            return
        if self._holds_newlines:
            piece = self._newlines + piece
            kept = piece.rstrip("\n")
            piece, self._newlines = kept, piece[len(kept) :]
        if piece:
            self._trims = self._closes_call = False
            self._text.append(piece)

    # -- thinking --

    def _read_reasoning(self) -> bool:
        before, tag = self._cut((THINK_END, THINK) if self._trims else (THINK_END,))
        trims = self._trims
        self._think(before)
        if tag == THINK and not (trims and self._trims):
            self._think(tag)
        elif tag == THINK_END:
            self._is_reasoning, self._trims, self._newlines = False, True, ""
        return tag is not None

    def _think(self, piece: str) -> None:
        if self._trims:
            piece = piece.lstrip("\n")
        piece = self._newlines + piece
        kept = piece.rstrip("\n")
        self._newlines = piece[len(kept) :]
        if kept:
            self._trims = False
            self._reasoning.append(kept)

    # -- calls --

    def _read_call(self, call: CallReader) -> bool:
        rest = call.feed(self._buffer)
        self._buffer = rest or ""
        self._announce(call)
        if rest is not None:
            self._close_call(call)
        return rest is not None

    def _announce(self, call: CallReader) -> None:
        if not call.has_begun:
            return
        if call.index == len(self._calls):
            self._newlines = ""
            self._calls.append(call)
            self._deltas.append(ToolCallDelta(index=call.index, id=call.id, name=call.name, arguments=call.take()))
        elif arguments := call.take():
            self._deltas.append(ToolCallDelta(index=call.index, arguments=arguments))

    def _close_call(self, call: CallReader) -> None:
        """The call is over: back to text, which gets whatever of it was no call."""
        call.close()
        self._call = None
        self._announce(call)
        if call.has_begun:
            self._trims = self._closes_call = True
        self._say(call.leftover)


class CallReader:
    """Reads one JSON object {"name": string, "arguments": object} as it grows, in one pass.

    Attributes:
        has_begun: the name is known and the arguments have begun, so this is a call.
        name: of the tool; empty until it is known.
        leftover: once closed, what of the text is no part of the call.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = new_call_id()
        self.name = ""
        self.has_begun = False
        self.leftover = ""
        self._raw = ""
        self._at = 0  # everything before this has been read
        self._depth = 0  # of braces and brackets
        self._quote: int | None = None  # where the string we are in began
        self._is_escaped = False
        self._key: str | None = None  # of the outer object, once its value is due
        self._start = self._end = -1  # of the arguments
        self._num_taken = 0

    @property
    def arguments(self) -> str:
        """The arguments so far, exactly as generated."""
        if self._start < 0:
            return "{}"
        return self._raw[self._start : self._at if self._end < 0 else self._end]

    def take(self) -> str:
        """The arguments since the last `take`."""
        piece = self.arguments[self._num_taken :]
        self._num_taken += len(piece)
        return piece

    def feed(self, text: str) -> str | None:
        """Read on. Returns None if more text is needed, else what follows the object or the place where it breaks."""
        self._raw += text
        while self._at < len(self._raw):
            if not (self._read_mark() if self._quote is None else self._read_string(self._quote)):
                rest, self._raw = self._raw[self._at :], self._raw[: self._at]
                return rest
        return None

    def close(self) -> None:
        """Decide what is left over: everything if this is no call, else what follows the arguments, unless that is in order."""
        if not self.has_begun:
            self.has_begun = bool(self.name) and _has_no_arguments(self._raw)
        if not self.has_begun:
            self.leftover = CALL + self._raw
        elif self._end >= 0 and not self._ends_well():
            self.leftover = self._raw[self._end :]

    def _ends_well(self) -> bool:
        tail = self._raw[self._end :]
        return not tail.strip() or _is_json(self._raw[: self._start] + "null" + tail)

    def _read_string(self, quote: int) -> bool:
        """Read to the end of the string or of the text. False if it ends a name that makes no call."""
        if self._is_escaped:
            self._at, self._is_escaped = self._at + 1, False
            return True
        mark = _in_string.search(self._raw, self._at)
        self._at = len(self._raw) if mark is None else mark.end()
        if mark is None:
            return True
        if mark.group() == "\\":
            self._is_escaped = True
            return True
        self._quote = None
        return self._depth != 1 or self._name(self._raw[quote : self._at])

    def _name(self, text: str) -> bool:
        """A string of the outer object is complete: a key, the tool's name, or of no interest."""
        if self._key is None:
            self._key = text
        elif self._key == '"name"':
            self.name = json.loads(text) if _is_json(text) else ""
            return self._start < 0 or self._begin()
        return True

    def _read_mark(self) -> bool:
        """Read up to and with the next mark outside a string. False at the end of the object, or where it breaks."""
        if self._depth == 0:
            return self._open()
        mark = _outside.search(self._raw, self._at)
        if mark is None or mark.group() == "<":  # a tag: the model forgot to close the object
            self._at = len(self._raw) if mark is None else mark.start()
            return mark is None
        self._at = mark.end()
        return self._nest(mark.group(), mark.start())

    def _open(self) -> bool:
        rest = self._raw[self._at :].lstrip()
        self._at = len(self._raw) - len(rest)
        if rest.startswith("{"):
            self._at, self._depth = self._at + 1, 1
        return not rest or self._depth == 1

    def _nest(self, mark: str, at: int) -> bool:
        if mark == '"':
            self._quote = at
        elif mark == ",":
            self._key = None if self._depth == 1 else self._key
        elif mark in "{[":
            self._depth += 1
            if mark == "{" and self._depth == 2 and self._key == '"arguments"' and self._start < 0:
                self._start = at
                return not self.name or self._begin()
        else:
            self._depth -= 1
            if self._depth == 1 and self._start >= 0 and self._end < 0:
                self._end = self._at
        return self._depth > 0

    def _begin(self) -> bool:
        """Name and arguments are both there: a call, if what surrounds them is JSON."""
        tail = "" if self._end < 0 else self._raw[self._end : self._at]
        self.has_begun = bool(self.name) and _is_json(self._raw[: self._start] + "null" + tail + "}")
        return self.has_begun


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _has_no_arguments(text: str) -> bool:
    return _is_json(text) and json.loads(text).get("arguments") is None
