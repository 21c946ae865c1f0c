"""Mends the indentation of code that does not parse: models lose it at the first line, at a fence in a list, at a dedent."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator

from atlas.ralph.syntax import parse

STEP = "    "
MAX_DEPTH = 100  # the tokenizer's own bound
_SPACES = {ord("\u00a0"): " ", ord("\u2003"): " ", ord("\u200b"): None, ord("\ufeff"): None}
_PROMPTS = (">>>", "...")


def mend(code: str) -> str:
    """The code with an indentation that parses, if one of the known slips explains why it does not; else as it is, dedented."""
    plain = _without_prompts(code.replace("\r\n", "\n").replace("\r", "\n")).strip("\n")
    return next((text for text in _attempts(plain) if parse(text) is not None), textwrap.dedent(plain))


def _attempts(code: str) -> Iterator[str]:
    yield code
    yield textwrap.dedent(code)
    spaced = code.translate(_SPACES).expandtabs(4)
    yield textwrap.dedent(spaced)
    slips: tuple[Callable[[str], str], ...] = (_first_line_lost, _body_lost, _snapped)
    for mended in slips:
        yield mended(spaced)
    yield _snapped(_first_line_lost(spaced))


def _without_prompts(code: str) -> str:
    """What was typed, of a session at the interpreter. Prompts further down are examples in a docstring."""
    lines = code.split("\n")
    if not code.lstrip().startswith(_PROMPTS[0]):
        return code
    typed = [line.lstrip() for line in lines if line.lstrip().startswith(_PROMPTS)]
    return "\n".join(line[4:] if line[3:4] == " " else line[3:] for line in typed)


def _first_line_lost(code: str) -> str:
    """The first line stands at another depth than the rest, which was cut out together with it."""
    first, _, rest = code.partition("\n")
    return first.lstrip() + "\n" + textwrap.dedent(rest)


def _body_lost(code: str) -> str:
    """The body of the only function stands at the depth of its `def`."""
    first, _, rest = code.partition("\n")
    if not first.rstrip().endswith(":"):
        return code
    return first.lstrip() + "\n" + textwrap.indent(textwrap.dedent(rest), STEP)


def _snapped(code: str) -> str:
    """Each line at a depth that is open: deeper only after a colon, and back only to where something began."""
    depths, shown, opens = [0], [], False
    for line in code.split("\n"):
        text = line.strip()
        if not text:
            shown.append("")
            continue
        depth = len(line) - len(line.lstrip())
        if opens and len(depths) < MAX_DEPTH:
            depths.append(max(depth, depths[-1] + 1))
        else:
            while len(depths) > 1 and depth < depths[-1] and depth <= depths[-2] + _slack(depths):
                depths.pop()
        shown.append(STEP * (len(depths) - 1) + text)
        opens = text.split("#")[0].rstrip().endswith(":")
    return "\n".join(shown)


def _slack(depths: list[int]) -> int:
    """How much deeper than the outer level a line may stand and still belong to it: less than half of the step."""
    return (depths[-1] - depths[-2] - 1) // 2
