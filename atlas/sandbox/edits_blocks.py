"""Search/replace blocks, and whole files in fenced blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atlas.sandbox.edits_lines import Lines, Place, find_loosely, is_windows, nearest, reindent, show_first_difference
from atlas.sandbox.edits_tree import Rejected, Tree, reject
from atlas.types import EditFault

SEARCH = re.compile(r"<{5,9} ?SEARCH\b.*$")
DIVIDER = re.compile(r"={5,9}\s*$")
REPLACE = re.compile(r">{5,9} ?REPLACE\b.*$")
FENCE = re.compile(r"(`{3,}|~{3,})[^`]*$")
DECORATION = re.compile(r"^(?:#+ |[*-] |\d+\. |//+ |# ?)?(?:(?:file|path|filename)(?:name)?: *)?", re.IGNORECASE)
LINES_ABOVE = 3  # a path stands this near above its block
SHOWN_LINES = 6


class Block(NamedTuple):
    """One block as it was written."""

    number: int
    path: str  # empty: none stands above it
    body: list[str]  # between SEARCH and REPLACE, the divider included


def has_blocks(text: str) -> bool:
    return any(SEARCH.match(line) for line in text.split("\n"))


def apply_blocks(text: str, tree: Tree) -> None:
    """Apply one block after the other.

    Raises:
        Rejected: one does not fit; the message says which and why.
    """
    path = ""
    for block in _parse(_as_unix(text), tree):
        path = block.path or path
        if not path:
            raise reject(
                "malformed", f"block {block.number} does not say which file: write its path above it", block=block.number
            )
        _apply(block._replace(path=path), tree)


def _as_unix(text: str) -> str:
    """An answer that was sent with carriage returns throughout does not mean them."""
    return text.replace("\r\n", "\n") if is_windows(text) else text


def _parse(text: str, tree: Tree) -> Iterator[Block]:
    lines = text.split("\n")
    number = end = 0
    while (start := _index(SEARCH, lines, end)) is not None:
        number += 1
        above, end_of_block = lines[end:start], _index(REPLACE, lines, start)
        if end_of_block is None:
            raise reject("malformed", f"block {number} has no line '>>>>>>> REPLACE'", block=number)
        yield Block(number, _path_above(above, tree), lines[start + 1 : end_of_block])
        end = end_of_block + 1


def _index(pattern: re.Pattern[str], lines: Sequence[str], start: int) -> int | None:
    return next((number for number in range(start, len(lines)) if pattern.match(lines[number])), None)


def _path_above(lines: Sequence[str], tree: Tree) -> str:
    """The nearest line that names a file; fences and blank lines between do not count."""
    spoken = [line for line in lines if line.strip() and not FENCE.match(line.strip())]
    return next((path for line in reversed(spoken[-LINES_ABOVE:]) if (path := _as_path(line, tree))), "")


def _as_path(line: str, tree: Tree) -> str:
    """The path that this line is, empty if it is something else."""
    stripped = line.strip()
    for candidate in (stripped, _undecorated(stripped)):
        if tree.has(candidate):
            return candidate
    candidate = _undecorated(stripped)
    looks_like_one = bool(candidate) and not re.search(r"\s", candidate) and ("/" in candidate or "." in candidate.strip("."))
    return candidate if looks_like_one else ""


def _undecorated(line: str) -> str:
    return DECORATION.sub("", line.strip("*` ")).strip("*`'\" ").removesuffix(":").strip("*`'\" ")


def _apply(block: Block, tree: Tree) -> None:
    before = tree.text(block.path)
    divided = [number for number, line in enumerate(block.body) if DIVIDER.match(line)]
    if not divided:
        raise _reject(block, "malformed", "it has no line '======='")
    halves = [(block.body[:number], block.body[number + 1 :]) for number in divided]
    if not any(halves[0][0]):
        tree.write(block.path, _new_text(block, before, halves[0][1]), block=block.number)
        return
    if before is None:
        raise reject("missing", f"{block.path}, block {block.number}: there is no such file", path=block.path, block=block.number)
    tree.write(block.path, _replaced(block, before, halves), block=block.number)


def _new_text(block: Block, before: str | None, replace: Sequence[str]) -> str:
    """An empty SEARCH is for a file that is not there yet, or has nothing in it."""
    if before:
        raise _reject(block, "ambiguous", "SEARCH is empty, but the file is not: copy the lines that are to be replaced")
    return Lines(list(replace), True).join()


def _replaced(block: Block, before: str, halves: Sequence[tuple[list[str], list[str]]]) -> str:
    """The text with the block applied. A divider may also be a line of the file: the longest SEARCH that is found decides."""
    is_dos = is_windows(before) and "\r" not in "".join(block.body)
    lines = Lines.split(before.replace("\r\n", "\n") if is_dos else before)
    found = ((find_loosely(lines.lines, search), replace) for search, replace in reversed(halves))
    places, replace = next(((places, replace) for places, replace in found if places), ((), []))
    if not places:
        raise _not_found(block, lines.lines, halves[0][0])
    if len(places) > 1:
        numbers = ", ".join(str(place.start + 1) for place in places)
        raise _reject(block, "ambiguous", f"its SEARCH is found more than once, at lines {numbers}: add lines around it")
    after = _put(block, lines, places[0], replace)
    return after.replace("\n", "\r\n") if is_dos else after


def _put(block: Block, lines: Lines, place: Place, replace: Sequence[str]) -> str:
    standing = reindent(replace, place)
    if standing is None:
        raise _reject(block, "not_found", "SEARCH is indented more than the file is, and REPLACE is not")
    return lines._replace(lines=[*lines.lines[: place.start], *standing, *lines.lines[place.stop :]]).join()


def _reject(block: Block, fault: EditFault, message: str) -> Rejected:
    return reject(fault, f"{block.path}, block {block.number}: {message}", path=block.path, block=block.number)


def _not_found(block: Block, lines: Sequence[str], search: Sequence[str]) -> Rejected:
    shown = "\n".join(f"      | {line}" for line in search[:SHOWN_LINES])
    message = f"its SEARCH lines are not in the file:\n{shown}"
    if near := nearest(lines, search):
        message += f"\nThe file comes nearest here:\n{near}\n{show_first_difference(lines, search)}"
    return _reject(block, "not_found", message)


def apply_whole_files(text: str, tree: Tree) -> bool:
    """Take each fenced block below a path as that file's new text; whether there was one.

    Raises:
        Rejected: a file must not be changed, or a fence is not closed.
    """
    found = False
    for number, (path, body) in enumerate(_fenced(_as_unix(text), tree), 1):
        if body is None:
            message = f"{path}: its block is not closed; the answer may have been cut off"
            raise reject("malformed", message, path=path, block=number)
        before = tree.text(path) or ""
        after = Lines(body, True).join()
        tree.write(path, after.replace("\n", "\r\n") if is_windows(before) else after, block=number)
        found = True
    return found


def _fenced(text: str, tree: Tree) -> Iterator[tuple[str, list[str] | None]]:
    """Paths, and the blocks that stand right below them; None for one without an end."""
    lines = text.split("\n")
    end = 0
    while (start := _index(FENCE, lines, end)) is not None:
        opening = FENCE.match(lines[start])
        assert opening is not None
        close = _index(re.compile(re.escape(opening[1]) + r"[`~]*\s*$"), lines, start + 1)
        above = [line for line in lines[end:start] if line.strip()]
        if path := _as_path(above[-1], tree) if above else "":
            yield path, None if close is None else lines[start + 1 : close]
        if close is None:
            return
        end = close + 1
