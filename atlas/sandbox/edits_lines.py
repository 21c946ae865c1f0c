"""A text as lines: where a run of lines stands in it, and what comes nearest where it stands nowhere."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

MAX_PLACES = 5  # more need not be known: two are one too many
COMMON_LINE = 20  # a line that occurs more often says nothing about where it belongs
MAX_COMPARED_LINES = 3000
MAX_COMPARED_CHARS = 200
SHOWN_LINES = 8
SIMILAR = 0.6


class Lines(NamedTuple):
    """Lines without their line feeds; a carriage return belongs to its line. No lines are the empty text."""

    lines: list[str]
    is_ended: bool  # by a line feed after the last line

    @classmethod
    def split(cls, text: str) -> Lines:
        if not text:
            return cls([], True)
        lines = text.split("\n")
        return cls(lines, False) if lines[-1] else cls(lines[:-1], True)

    def join(self) -> str:
        return "\n".join(self.lines) + ("\n" if self.is_ended and self.lines else "")


class Place(NamedTuple):
    """Where lines were found: `text.lines[start:stop]`."""

    start: int
    stop: int
    form: str = ""  # what had to be overlooked: "", "trailing white space", "indentation", "context"
    prefix: str = ""  # what the text has before each line that the wanted ones have not
    surplus: str = ""  # the other way round


def find(lines: Sequence[str], wanted: Sequence[str], form: Callable[[str], str] = str) -> list[int]:
    """Where `wanted` begins in `lines`, each line seen through `form`; at most MAX_PLACES, in order."""
    if not wanted or len(wanted) > len(lines):
        return []
    text = "\n" + "\n".join(map(form, lines)) + "\n"
    part = "\n" + "\n".join(map(form, wanted)) + "\n"
    places: list[int] = []
    line = seen = 0
    position = text.find(part)
    while position >= 0 and len(places) < MAX_PLACES:
        line += text.count("\n", seen, position)
        places.append(line)
        seen, position = position, text.find(part, position + 1)
    return places


def find_loosely(lines: Sequence[str], wanted: Sequence[str]) -> list[Place]:
    """Where it stands exactly, else but for trailing white space, else but for one indentation that all its lines lack or add."""
    for form, name in ((str, ""), (str.rstrip, "trailing white space")):
        if starts := find(lines, wanted, form):
            return [Place(start, start + len(wanted), name) for start in starts]
    shifted = (_shift(lines[start : start + len(wanted)], wanted, start) for start in find(lines, wanted, str.strip))
    return [place for place in shifted if place is not None]


def _shift(had: Sequence[str], wanted: Sequence[str], start: int) -> Place | None:
    """The place, if the same indentation is missing or too much everywhere."""
    pairs = [(have.rstrip(), want.rstrip()) for have, want in zip(had, wanted, strict=True) if want.strip()]
    if not pairs:
        return None
    more, less = _indentation(pairs[0][0]), _indentation(pairs[0][1])
    if more.endswith(less):
        more, less = more.removesuffix(less), ""
    elif less.endswith(more):
        more, less = "", less.removesuffix(more)
    else:
        return None
    if all(less + have == more + want for have, want in pairs):
        return Place(start, start + len(wanted), "indentation", more, less)
    return None


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def reindent(lines: Sequence[str], place: Place) -> list[str] | None:
    """What is to stand there, indented as what stands there; None if a line has not the indentation to lose."""
    shifted = []
    for line in lines:
        if line.strip() and not line.startswith(place.surplus):
            return None
        shifted.append(place.prefix + line.removeprefix(place.surplus) if line.strip() else line)
    return shifted


def nearest(lines: Sequence[str], wanted: Sequence[str]) -> str:
    """Lines of the text, numbered, that look most like `wanted`; empty if none do."""
    start = _likely_start(lines, wanted)
    if start is None:
        return ""
    shown = list(enumerate(lines, 1))[max(0, start) : max(0, start) + min(len(wanted), SHOWN_LINES)]
    return "\n".join(f"{number:5} | {line[:MAX_COMPARED_CHARS]}" for number, line in shown)


def _likely_start(lines: Sequence[str], wanted: Sequence[str]) -> int | None:
    """Each line of `wanted` that the text has votes for a start; if none has a vote, the longest line's likeness decides."""
    positions: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        positions.setdefault(line.strip(), []).append(number)
    votes: Counter[int] = Counter()
    for offset, line in enumerate(wanted[:MAX_COMPARED_LINES]):
        found = positions.get(line.strip(), []) if line.strip() else []
        votes.update(number - offset for number in found if len(found) <= COMMON_LINE)
    if votes:
        return min(votes, key=lambda start: (-votes[start], start))
    return _most_alike(positions, wanted)


def _most_alike(positions: dict[str, list[int]], wanted: Sequence[str]) -> int | None:
    offset, longest = max(enumerate(wanted), key=lambda pair: len(pair[1].strip()), default=(0, ""))
    texts = {line[:MAX_COMPARED_CHARS]: found[0] for line, found in list(positions.items())[:MAX_COMPARED_LINES] if line}
    alike = difflib.get_close_matches(longest.strip()[:MAX_COMPARED_CHARS], texts, n=1, cutoff=SIMILAR)
    return texts[alike[0]] - offset if alike else None


def show_first_difference(lines: Sequence[str], wanted: Sequence[str]) -> str:
    """The first line of `wanted` that the likeliest place has not, and what it has."""
    start = _likely_start(lines, wanted)
    if start is None:
        return ""
    for offset, line in enumerate(wanted):
        have = lines[start + offset] if 0 <= start + offset < len(lines) else None
        if have is None or have.rstrip() != line.rstrip():
            found = "nothing" if have is None else repr(have[:MAX_COMPARED_CHARS])
            return f"line {offset + 1} of it is {line[:MAX_COMPARED_CHARS]!r}, where the file has {found}"
    return ""


def is_windows(text: str) -> bool:
    """Every line feed has a carriage return before it, and there is one."""
    return "\r\n" in text and text.count("\r\n") == text.count("\n")
