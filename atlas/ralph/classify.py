"""Whether a chat asks for code that can be tested, and what it then asks for.

A rule, not a model: a verb for making is looked for next to a word for code. On 64 messages written after the rule
(`tests/ralph/classified.py`, by the same hand) it found 24 of 32 coding tasks and took none of 32 others; then it was mended on
them, and finds 31. What it misses passes through to the model and is marked `unchecked`; what it takes wrongly costs a few
candidates.
"""

from __future__ import annotations

import re

from atlas.types import Message, Prompt, Request

LOOKED_AT_CHARS = 20_000


def _any(words: str) -> str:
    """A pattern for one of these words; a + in a word stands for a blank."""
    return "(?:" + "|".join(word.replace("+", " ") for word in words.split()) + ")"


_MAKE = _any(
    "write implement create code program complete define build make give+me generate develop design provide finish need want "
    "produce"
)
_CODE = _any(
    "solutions? checkers? functions? methods? class(?:es)? programs? scripts? code algorithms? generators? decorators? "
    "coroutines? regex(?:es)? parsers? one-liners? snippets? subroutines? lambdas? def python"
)
_MEND = _any("fix debug correct repair optimi[sz]e refactor rewrite speed+up simplify translate port convert")
_DO = _any("solve simulate given return compute calculate find count sort reverse check remove print sum merge")
_TALK = _any(
    "explain describe what(?:'s|+is|+are|+does|+do)? why who when where which compare summari[sz]e tell+me list should is are "
    "does do did discuss how+(?:does|do+you+feel|is|are|many|much|long|old|come) hello hi hey thanks thank+you"
)
_TEXT = _any(
    "essay poem story haiku song e-?mails? letter blog tweet speech article recipe joke summary review paragraph cv resume "
    "documentation docstrings? readme commit+message slogan sql html css dockerfile makefile yaml bash shell terraform"
)

_ASKS = re.compile(rf"\b{_MAKE}\b(?:\W+\w+){{0,8}}?\W+{_CODE}\b", re.IGNORECASE)
_WANTS = re.compile(r"\bimplement\b|\ba (?:function|program|script|class) (?:that|which)\b", re.IGNORECASE)
_CALL = re.compile(rf"\b{_MAKE}\b[^.\n]{{0,60}}?[`'\"]?\b[a-z_]\w*\([\w\s,:=\[\]*.|]*\)", re.IGNORECASE)
_MENDS = re.compile(rf"\b{_MEND}\b", re.IGNORECASE)
_DOES = re.compile(rf"\b{_DO}\b", re.IGNORECASE)
_IN_PYTHON = re.compile(
    r"\b(?:in|using|with|use) (?:pure |plain )?python\b|\bpython(?:3| (?:function|program|code|script))\b", re.IGNORECASE
)
_INPUT = re.compile(r"^[ \t*#]*(?:sample |example )?input\b", re.IGNORECASE | re.MULTILINE)
_OUTPUT = re.compile(r"^[ \t*#]*(?:sample |example )?output\b", re.IGNORECASE | re.MULTILINE)
_STUB = re.compile(r"^[ \t]*(?:async )?def \w+\(.*\).*:\s*$", re.MULTILINE)
_TALKS = re.compile(rf"^\W*(?:(?:can|could|would) you (?:please )?)?(?:please )?{_TALK}\b", re.IGNORECASE)
_IS_TEXT = re.compile(rf"\b{_TEXT}\b", re.IGNORECASE)


def is_coding_task(prompt: Prompt) -> bool:
    """Whether the last message asks for Python that can be run. Never where tools, a schema or a raw text is given."""
    is_chat = bool(prompt.messages) and prompt.messages[-1].role == "user"
    is_bound = prompt.json_schema is not None or prompt.grammar is not None
    if not is_chat or is_bound or prompt.tools or any(m.role == "tool" for m in prompt.messages):
        return False
    return asks_for_code(prompt.messages[-1].content)


def asks_for_code(text: str) -> bool:
    """Whether a message asks for Python that can be run."""
    text = text[:LOOKED_AT_CHARS]
    words = _without_code(text)
    asks = bool(_ASKS.search(words) or _WANTS.search(words))
    if (_TALKS.match(words) and not asks) or (_IS_TEXT.search(words) and not _IN_PYTHON.search(words)):
        return False
    return asks or bool(_CALL.search(words)) or _is_contest(text) or _is_about_code(text, words)


def _is_contest(text: str) -> bool:
    """A block of input and a block of output below it."""
    given = _INPUT.search(text)
    return given is not None and _OUTPUT.search(text, given.end()) is not None


def _is_about_code(text: str, words: str) -> bool:
    """Code to be mended or completed, or something to be done in Python."""
    if _STUB.search(text) or ("```" in text and _MENDS.search(words)):
        return True
    return bool(_IN_PYTHON.search(words) and (_DOES.search(words) or _MENDS.search(words)))


def request_of(prompt: Prompt) -> Request:
    """The request that a chat makes: the last message is the task, what came before is history."""
    *history, asked = prompt.messages
    return Request(task=asked.content, history=tuple(map(_spoken, history)), model=prompt.model, deadline_s=prompt.deadline_s)


def _spoken(message: Message) -> Message:
    return Message(role=message.role, content=message.content)


def _without_code(text: str) -> str:
    """The prose of a message."""
    return re.sub(r"```.*?(?:```|\Z)", " ", text, flags=re.DOTALL)
