"""Unified diffs as models write them: applied with patience, but without guessing.

Line numbers and counts may be wrong: the lines themselves say where a hunk belongs. At most MAX_FUZZ lines of context at each end
may not fit. What fits in two places is rejected, unless it stands where the diff says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from atlas.sandbox.edits_lines import Lines, find, is_windows, nearest, show_first_difference
from atlas.sandbox.edits_tree import Rejected, Tree, reject
from atlas.sandbox.patches_parsing import FilePatch, Hunk, parse_patch
from atlas.types import EditFault

MAX_FUZZ = 2
SHOWN_LINES = 6


class Change(NamedTuple):
    """`lines[start:stop]` of the old text become `lines`."""

    start: int
    stop: int
    lines: list[str]


def apply_patch(text: str, tree: Tree) -> None:
    """Apply the diff to all files it names.

    Raises:
        Rejected: a hunk does not fit, or the text is not a diff; the message says which and why.
    """
    for patch in parse_patch(text):
        _apply(patch, tree)


def _apply(patch: FilePatch, tree: Tree) -> None:
    if not patch.old:
        _create(patch, _choose(patch.new, tree), tree)
    elif not patch.new:
        _delete(patch, _choose(patch.old, tree), tree)
    elif patch.is_rename:
        _rename(patch, _choose(patch.old, tree), _choose(patch.new, tree), tree)
    else:
        path = next((path for path in (*patch.new, *patch.old) if tree.has(path)), patch.new[0])
        tree.write(path, patched(patch, path, _existing(tree, path)))


def _choose(spellings: Sequence[str], tree: Tree) -> str:
    return next((path for path in spellings if tree.has(path)), spellings[0])


def _existing(tree: Tree, path: str) -> str:
    text = tree.text(path)
    if text is None:
        raise reject("missing", f"{path}: there is no such file; a new one is written as '--- /dev/null'", path=path)
    return text


def _create(patch: FilePatch, path: str, tree: Tree) -> None:
    if tree.text(path):
        raise reject("exists", f"{path}: the diff makes this file, but it is there already", path=path)
    tree.write(path, patched(patch, path, ""))


def _delete(patch: FilePatch, path: str, tree: Tree) -> None:
    if patch.hunks and patched(patch, path, _existing(tree, path)):
        raise reject("not_found", f"{path}: the diff deletes this file, but does not list all of its lines", path=path)
    _existing(tree, path)
    tree.write(path, None)


def _rename(patch: FilePatch, old: str, new: str, tree: Tree) -> None:
    text = _existing(tree, old)
    if tree.text(new) is not None:
        raise reject("exists", f"{new}: {old} cannot take this name, which is another file's", path=new)
    tree.write(new, patched(patch, old, text))
    tree.write(old, None)


def patched(patch: FilePatch, path: str, before: str) -> str:
    """The text with all hunks applied.

    Raises:
        Rejected: one does not fit.
    """
    written = "".join(line for hunk in patch.hunks for _, line in hunk.lines)
    is_dos = is_windows(before) and "\r" not in written
    old = Lines.split(before.replace("\r\n", "\n") if is_dos else before)
    changes: list[Change] = []
    drift = 0
    for hunk in patch.hunks:
        change, shift = _place(hunk, path, old.lines, drift)
        changes.append(change)
        drift = shift if shift is not None else drift
    after = Lines(_merge(old.lines, changes, path), _is_ended(patch.hunks, changes, old)).join()
    return after.replace("\n", "\r\n") if is_dos else after


def _merge(lines: list[str], changes: list[Change], path: str) -> list[str]:
    merged: list[str] = []
    done = 0
    for change in sorted(changes, key=lambda change: change[:2]):
        if change.start < done:
            raise reject("ambiguous", f"{path}: two hunks change the same lines, at line {change.start + 1}", path=path)
        merged += [*lines[done : change.start], *change.lines]
        done = change.stop
    return merged + lines[done:]


def _is_ended(hunks: Sequence[Hunk], changes: Sequence[Change], old: Lines) -> bool:
    """Whether the last line ends: as a hunk at the end says; where none says anything, as before."""
    for hunk, change in zip(hunks, changes, strict=True):
        if change.stop == len(old.lines) and hunk.is_ended is not None:
            return hunk.is_ended
    return old.is_ended


def _place(hunk: Hunk, path: str, lines: Sequence[str], drift: int) -> tuple[Change, int | None]:
    """The change it makes, and how far it stands from where the diff says; earlier ones stood off by `drift`.

    Raises:
        Rejected: its old lines stand nowhere, or in several places of which none is the stated one.
    """
    if not hunk.old:
        start = _insertion(hunk, path, len(lines))
        return Change(start, start, [text for _, text in hunk.lines]), None
    for trimmed, form in _attempts(hunk):
        stated = [] if trimmed.start is None else [trimmed.start + drift, trimmed.start]
        places = [start for start in stated if _stands(lines, trimmed.old, start, form)] or find(lines, trimmed.old, form)
        if len(places) == 1 or (places and places[0] in stated):
            start = places[0]
            return _change(trimmed, start, lines), None if trimmed.start is None else start - trimmed.start
        if places:
            raise _ambiguous(hunk, path, places)
    raise _not_found(hunk, path, lines)


def _attempts(hunk: Hunk) -> Iterator[tuple[Hunk, Callable[[str], str]]]:
    """Exactly first, then with white space at the ends of lines overlooked, then the same with less context."""
    seen = set()
    for fuzz in range(MAX_FUZZ + 1):
        ends = (min(fuzz, hunk.num_leading), min(fuzz, hunk.num_trailing))
        trimmed = hunk.without_ends(*ends)
        if ends in seen or (not "".join(trimmed.old).strip() and fuzz):
            continue
        seen.add(ends)
        yield trimmed, str
        yield trimmed, str.rstrip


def _stands(lines: Sequence[str], wanted: Sequence[str], start: int, form: Callable[[str], str]) -> bool:
    if start < 0 or start + len(wanted) > len(lines):
        return False
    return all(form(have) == form(want) for have, want in zip(lines[start : start + len(wanted)], wanted, strict=True))


def _change(hunk: Hunk, start: int, lines: Sequence[str]) -> Change:
    """Lines of context stay as the file has them."""
    written: list[str] = []
    position = start
    for kind, text in hunk.lines:
        if kind != "-":
            written.append(text if kind == "+" else lines[position])
        position += kind != "+"
    return Change(start, position, written)


def _insertion(hunk: Hunk, path: str, num_lines: int) -> int:
    if num_lines == 0:
        return 0
    if hunk.start is None or hunk.start > num_lines:
        raise _reject(hunk, path, "ambiguous", "it has no line of the file that says where it belongs")
    return hunk.start


def _reject(hunk: Hunk, path: str, fault: EditFault, message: str) -> Rejected:
    return reject(fault, f"{path}, hunk {hunk.number}: {message}", path=path, block=hunk.number)


def _ambiguous(hunk: Hunk, path: str, places: Sequence[int]) -> Rejected:
    numbers = ", ".join(str(start + 1) for start in places)
    return _reject(hunk, path, "ambiguous", f"its lines are found more than once, at lines {numbers}: give more context")


def _not_found(hunk: Hunk, path: str, lines: Sequence[str]) -> Rejected:
    shown = "\n".join(f"      | {line}" for line in hunk.old[:SHOWN_LINES])
    message = f"its old lines are not in the file:\n{shown}"
    if near := nearest(lines, hunk.old):
        message += f"\nThe file comes nearest here:\n{near}\n{show_first_difference(lines, hunk.old)}"
    return _reject(hunk, path, "not_found", message)
