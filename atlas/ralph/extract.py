"""Reads the code out of what a model said.

Answers come with prose around the code, with several fences, with none, with one that is never closed, with thinking before, as
a session at the interpreter, or indented as nobody asked. Nothing here runs anything, and nothing raises, whatever the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from atlas.ralph.indentation import mend
from atlas.ralph.syntax import defined_names, definitions, free_names, has_statements, parse, parse_or_line

ANSWER_LIMIT_CHARS = 200_000  # of an answer, which is less than the sandbox takes in any encoding
ANSWERS_KEPT = 32  # read lately: candidates of one prompt often say the same (chosen)
MAX_STARTS = 6  # places in a text without fences where code may begin
MAX_CUTS = 24  # how often what follows the code is cut off before we give up
PYTHON = frozenset({"", "python", "py", "python3", "py3", "pycon", "python-repl"})
NOT_CODE = frozenset({"text", "txt", "output", "console", "bash", "sh", "shell", "json", "diff", "plaintext", "markdown", "md"})

_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})([^`\n]*)$")
_ON_ONE_LINE = re.compile(r"[ \t]*```(?:python|py)?[ \t]+([^`\n]+)```[ \t]*$")
_START = re.compile(
    r"[ \t]*(?:>>> )?(?:def |class |async def |import |from \w|@\w|if |for |while |with |print\(|[A-Za-z_]\w* = )"
)
_THOUGHT_END = "</think>"
_THOUGHT = "<think>"


class Block(NamedTuple):
    """What stood between two fences; `language` is the first word after the opening one."""

    language: str
    text: str
    is_closed: bool


class Merit(NamedTuple):
    """Why one block is preferred to another, the weightiest reason first."""

    is_named: bool  # defines what is asked for
    parses: bool
    is_code: bool
    defines: bool
    is_python: bool


@lru_cache(maxsize=ANSWERS_KEPT)
def read_code(answer: str, entry_point: str = "", *, language: str = "python") -> str:
    """The program in an answer; empty if there is none.

    Args:
        answer: as generated, thinking and all.
        entry_point: what is asked for; of several blocks the one that defines it is meant.
        language: any other than Python is taken from its fence as it stands.
    """
    text = answer[:ANSWER_LIMIT_CHARS].encode("utf-8", "ignore").decode()  # a lone surrogate can be in no file
    for part in _said(text):
        if code := _read(part, entry_point.partition(".")[0], language):
            return code
    return ""


def _said(answer: str) -> Iterator[str]:
    """What was said after thinking, or before a thought that does not end; if that holds no code, the thought itself."""
    before, opened, _ = answer.partition(_THOUGHT)
    if _THOUGHT_END in answer:
        yield answer.rpartition(_THOUGHT_END)[2]
    elif opened:
        yield before
    yield answer.replace(_THOUGHT, "\n").replace(_THOUGHT_END, "\n")


def _read(text: str, name: str, language: str) -> str:
    blocks = split_blocks(text)
    if language != "python":
        return _foreign(blocks, language) or text.strip() + "\n"
    if blocks:
        return _from_blocks(blocks, name)
    return _from_prose(text, name)


def split_blocks(text: str) -> list[Block]:
    """The fenced blocks of a text, in order; the last one may never end."""
    blocks: list[Block] = []
    mark, language, lines = "", "", list[str]()
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if not mark:
            if single := _ON_ONE_LINE.match(line):
                blocks.append(Block("", single[1] + "\n", is_closed=True))
            elif found:
                mark, language, lines = found[1], _first_word(found[2]), []
        elif _closes(line, mark, found) and not _in_string(lines):
            rest = line.partition(mark)[0] if not found else ""
            blocks.append(Block(language, "\n".join([*lines, rest]), is_closed=True))
            mark = ""
        else:
            lines.append(line)
    return [*blocks, Block(language, "\n".join(lines), is_closed=False)] if mark else blocks


def _first_word(info: str) -> str:
    return (info.split() or [""])[0].strip("{}.").lower()


def _closes(line: str, mark: str, found: re.Match[str] | None) -> bool:
    """A fence of the same kind and at least as long, or one that is glued to the last line of code."""
    if found:
        return found[1].startswith(mark) and not found[2].strip()
    return mark[0] == "`" and line.rstrip().endswith(mark)


def _in_string(lines: Sequence[str]) -> bool:
    """Whether a docstring is open: a fence in it is an example, not an end."""
    return any(sum(line.count(quotes) for line in lines) % 2 for quotes in ('"""', "'''"))


def _foreign(blocks: Sequence[Block], language: str) -> str:
    named = [block for block in blocks if block.language == language.lower()]
    return (named or list(blocks))[-1].text.strip("\n") + "\n" if blocks else ""


def _from_blocks(blocks: Sequence[Block], name: str) -> str:
    """The block that defines what is asked, together with blocks that define what it uses."""
    texts = [mend(block.text) if block.is_closed else _cut(mend(block.text)) for block in blocks]
    merits = [_merit(text, block.language, name) for text, block in zip(texts, blocks, strict=True)]
    best = max(range(len(blocks)), key=lambda number: (merits[number], number))
    if not texts[best].strip() or not merits[best].is_code:
        return ""
    return _with_helpers(texts, best) + "\n"


def _merit(text: str, language: str, name: str) -> Merit:
    tree = parse(text)
    is_python = language in PYTHON
    if tree is None:
        mentions = bool(re.search(rf"(?:def|class)\s+{re.escape(name)}\b", text)) if name else "def " in text
        return Merit(bool(name) and mentions, False, is_python or mentions, mentions, is_python)
    defined = [node.name for node in definitions(tree)]
    defines = any(not found.lower().startswith("test") for found in defined)
    is_code = has_statements(tree) and language not in NOT_CODE
    return Merit(name in defined_names(tree), True, is_code, defines, is_python)


def _with_helpers(texts: Sequence[str], best: int) -> str:
    """Definitions that the chosen block lacks may stand in blocks of their own."""
    if len(texts) == 1:
        return texts[0]
    chosen = parse(texts[best])
    if chosen is None or not (missing := free_names(chosen)):
        return texts[best]
    trees = [(number, parse(text)) for number, text in enumerate(texts)]
    helping = [texts[number] for number, tree in trees if number != best and tree is not None and missing & defined_names(tree)]
    joined = "\n\n".join([*helping, texts[best]])
    return joined if helping and parse(joined) is not None else texts[best]


def _from_prose(text: str, name: str) -> str:
    """The longest program among lines of prose; the one that defines `name`, if there is one."""
    lines = text.replace("\r\n", "\n").split("\n")
    starts = [number for number, line in enumerate(lines) if _START.match(line)][:MAX_STARTS]
    whole = mend(text)
    found = [_cut(mend("\n".join(lines[start:]))) for start in starts]
    programs = [code for code in [whole, *found] if (tree := parse(code)) is not None and has_statements(tree)]
    if not programs:
        return found[0] + "\n" if found and "def " in found[0] else ""
    return max(programs, key=lambda code: (_merit(code, "", name), len(code))) + "\n"


def _cut(code: str) -> str:
    """The code without what follows it, as far as that does not parse; as it is if nothing is left."""
    text = code
    for _ in range(MAX_CUTS):
        tree, line = parse_or_line(text)
        if tree is not None:
            return text if has_statements(tree) else code
        kept = text.split("\n")[: max(0, line - 1)]
        text = mend("\n".join(kept[: _last_whole(kept)]))
        if not text.strip():
            break
    return code


def _last_whole(lines: Sequence[str]) -> int:
    """How many lines to keep: without blank ones at the end, and without a header whose body is gone."""
    end = len(lines)
    while end and (not lines[end - 1].strip() or lines[end - 1].rstrip().endswith(":")):
        end -= 1
    return end
