"""Examples that stand in a task become tests: sessions at the interpreter, asserts, `f(1) -> 2`, blocks of input and output.

A wrong test is worse than none: it fails right answers. So only what can be nothing else is read, an example that another one
contradicts is left out with it, and what is not literal is left alone.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atlas.ralph.asserts import APPROX_TOLERANCE, Called, as_case, commonest, loose_cases
from atlas.ralph.syntax import is_literal, parse
from atlas.types import Case

MAX_EXAMPLES = 50
TEXT_LIMIT_CHARS = 100_000

_ARROW = re.compile(r"(?:->|=>|→|⇒|==|=(?!=)|returns?|should return|should be|gives|is)\s*(?=\S)")
_CALL = re.compile(r"(?<![\w.])(?<!def )([A-Za-z_]\w*)\(")
_NAMED = re.compile(
    r"\bdef\s+(\w+)|(?:called|named|(?:name|call) (?:it|the function))\s+[`'\"]?([A-Za-z_]\w*)"
    r"|function\s+(?:[`'\"]([A-Za-z_]\w*)[`'\"(]|([A-Za-z_]\w*)\s*\(|([a-z]\w*_\w+))"
)
_QUOTED_CALL = re.compile(r"[`'\"]?\b([A-Za-z_]\w*)\([\w\s,:=\[\]*.'\"|]*\)(?:\s*->\s*[\w\[\], .|]+)?[`'\"]?")
_HEADER = re.compile(
    r"^[ \t*#>-]*(?:sample |example )?(input|output|expected output|explanation|notes?|constraints|example|sample)s?(?: \d+)?"
    r"[ \t*]*:?[ \t*]*(.*)$",
    re.IGNORECASE,
)
_WORDS = "a an the that this which to it for in of with is and or from function method named called"
_NO_NAMES = frozenset([*dir(builtins), *_WORDS.split(" ")])
_SESSION = re.compile(r"^[ \t]*>>>[ \t](.*(?:\n[ \t]*\.\.\..*)*)((?:\n(?![ \t]*(?:>>>|\"\"\"|'''|```|$)).*)+)", re.MULTILINE)
_PROSE_END = re.compile(r"[\s.,;:!)`'\"*]+$")


class Pair(NamedTuple):
    """An input and the output that belongs to it, as texts."""

    given: str
    expected: str


def examples_in(task: str, entry_point: str = "") -> tuple[Called, ...]:
    """Calls in a task whose results stand beside them, without those that contradict each other.

    Args:
        task: in the user's words.
        entry_point: only calls of this function; empty: of the function that most of them call.
    """
    text = task[:TEXT_LIMIT_CHARS]
    found = [*_sessions(text), *loose_cases(text), *_arrows(text), *_named_inputs(text, entry_point or named_in(task))]
    name = entry_point or commonest(found)
    return _consistent([called for called in found if called.name == name])[:MAX_EXAMPLES]


def programs_in(task: str) -> tuple[Case, ...]:
    """Blocks of input and output of a task that asks for a whole program."""
    pairs = [pair for pair in _pairs(task[:TEXT_LIMIT_CHARS]) if pair.expected]
    expected: dict[str, set[str]] = {}
    for pair in pairs:
        expected.setdefault(pair.given, set()).add(pair.expected)
    cases = [Case(stdin=given, expected=outputs.pop()) for given, outputs in expected.items() if len(outputs) == 1]
    return tuple(cases[:MAX_EXAMPLES])


def named_in(task: str) -> str:
    """The function a task asks for, if it names one: `def f`, "a function f", "f(xs)"."""
    names = ["".join(groups) for groups in _NAMED.findall(task)]
    found = [*names, *_QUOTED_CALL.findall(task)]
    return next((name for name in found if name.lower() not in _NO_NAMES), "")


def _sessions(text: str) -> Iterator[Called]:
    """`>>> f(1)` and the lines below it, up to a blank one, the next prompt, the end of a docstring or a fence."""
    for found in _SESSION.finditer(text):
        typed = re.sub(r"\n[ \t]*\.\.\.", "\n", found[1])
        call, want = parse(typed.strip()), parse(textwrap.dedent(found[2]).strip())
        if call and want and len(call.body) == len(want.body) == 1:
            yield from _case(call.body[0], want.body[0])


def _case(call: ast.stmt, expected: ast.stmt, *, tolerance: float = 0.0) -> Iterator[Called]:
    if isinstance(call, ast.Expr) and isinstance(expected, ast.Expr):
        called = as_case(call.value, expected.value, tolerance=tolerance)
        if called is not None:
            yield called


def _arrows(text: str) -> Iterator[Called]:
    """`f(1) -> 2` in a line of prose; figures there may be rounded."""
    for line in text.splitlines():
        if line.lstrip().startswith((">>>", "assert ", "...")):
            continue
        for found in _CALL.finditer(line):
            call_end = _end_of_call(line, found.end() - 1)
            arrow = _ARROW.match(line[call_end:].lstrip("`'\" ")) if call_end else None
            if arrow is not None:
                rest = line[call_end:].lstrip("`'\" ")[arrow.end() :]
                yield from _arrow_case(line[found.start() : call_end], rest)


def _arrow_case(call: str, rest: str) -> Iterator[Called]:
    call_tree, value = parse(call), _leading_literal(rest)
    if call_tree is not None and value is not None and not call.endswith("()"):
        yield from _case(call_tree.body[0], value, tolerance=APPROX_TOLERANCE)


def _end_of_call(line: str, opening: int) -> int:
    """Where the call ends whose bracket opens there; 0 if nowhere. Quotes are minded, escapes in them are not."""
    depth, quote = 0, ""
    for position in range(opening, min(len(line), opening + 2000)):
        char = line[position]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
            if depth == 0:
                return position + 1
    return 0


def _leading_literal(text: str) -> ast.stmt | None:
    """The literal that a text begins with: all of it, or up to a comment, a comma, the end of the sentence."""
    text = text.lstrip("`* ")
    for end in [
        len(text),
        *(found.start() for found in re.finditer(r"\s*(?:#|\(|,|;|\.\s|\.$|`|\s[a-zA-Z]{2,}|\s-|//|$)", text)),
    ][:12]:
        part = text[:end].rstrip("`*, ") if end else ""
        tree = parse(part) or parse(_PROSE_END.sub("", part))
        if tree is not None and len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr) and is_literal(tree.body[0].value):
            return tree.body[0]
    return None


def _named_inputs(text: str, name: str) -> Iterator[Called]:
    """`Input: nums = [2, 7], target = 9` and `Output: [0, 1]`, as a call in that order."""
    if not name:
        return
    for pair in _pairs(text):
        given = pair.given.strip()
        arguments = re.sub(r"(^|,\s*)[A-Za-z_]\w*\s*=\s*(?!=)", r"\1", given)
        call, want = parse(f"{name}({arguments})"), _leading_literal(pair.expected)
        if arguments != given and call and want:
            yield from _case(call.body[0], want)


def _pairs(text: str) -> Iterator[Pair]:
    """What stands below or beside "Input" and "Output"; fences around it are not part of it."""
    given: str | None = None
    for kind, body in _sections(text):
        if kind == "input":
            given = body
        elif given is not None:
            yield Pair(given, body)
            given = None


def _sections(text: str) -> Iterator[tuple[str, str]]:
    kind, lines = "", list[str]()
    for line in [*text.splitlines(), "Input:"]:
        header = _HEADER.match(line)
        if header is None:
            lines.append(line)
            continue
        if kind:
            yield kind, _body(lines)
        kind, lines = header[1].lower().removeprefix("expected "), [header[2]] if header[2].strip("`* ") else []


def _body(lines: Sequence[str]) -> str:
    """The lines up to a blank one that prose follows, without fences."""
    kept: list[str] = []
    is_fenced = False
    for line in lines:
        if line.strip().startswith("```"):
            if is_fenced:
                break
            is_fenced = True
        elif not is_fenced and kept and not line.strip():
            break
        elif line.strip() or is_fenced:
            kept.append(line.rstrip())
    return "\n".join(kept).strip("\n`* ") + "\n" if kept else ""


def _consistent(found: Sequence[Called]) -> tuple[Called, ...]:
    """Each call once, and none with two different results."""
    expected: dict[tuple[str, str], set[str]] = {}
    for called in found:
        expected.setdefault((called.case.args, called.case.kwargs), set()).add(called.case.expected)
    first = {(called.case.args, called.case.kwargs): called for called in reversed(found)}
    return tuple(called for key, called in reversed(first.items()) if len(expected[key]) == 1)
