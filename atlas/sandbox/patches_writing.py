"""A unified diff of changed files as git writes one, without its index lines."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from atlas.sandbox.edits_lines import Lines

MAX_COMPARED = 4_000_000  # lines of the one times lines of the other; above it a change is written as one hunk (a second, here)
CONTEXT_LINES = 3
NO_NEWLINE = "\\ No newline at end of file\n"
QUOTED = {"\\": "\\\\", '"': '\\"', "\t": "\\t", "\n": "\\n"}


def render_diff(before: Mapping[str, str | None], after: Mapping[str, str | None]) -> str:
    """The change of all files in `after`; None is no file. Applying it with `git apply` to `before` gives `after`."""
    files = (_render(path, before.get(path), text) for path, text in sorted(after.items()) if text != before.get(path))
    return "".join(files)


def _render(path: str, before: str | None, after: str | None) -> str:
    old, new = _quoted(f"a/{path}"), _quoted(f"b/{path}")
    head = f"diff --git {old} {new}\n"
    if before is None:
        head += "new file mode 100644\n"
    elif after is None:
        head += "deleted file mode 100644\n"
    body = "".join(_hunks(_ended(before or ""), _ended(after or "")))
    if not body:
        return head
    names = "/dev/null" if before is None else _tabbed(old), "/dev/null" if after is None else _tabbed(new)
    return f"{head}--- {names[0]}\n+++ {names[1]}\n{body}"


def _ended(text: str) -> list[str]:
    """Lines with their line feeds, which the last one may not have."""
    lines = Lines.split(text)
    ended = [line + "\n" for line in lines.lines]
    return ended if lines.is_ended else [*ended[:-1], ended[-1][:-1]]


def _hunks(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    if len(old) * len(new) > MAX_COMPARED:
        yield from _one_hunk(old, new)
        return
    for line in list(difflib.unified_diff(old, new, n=CONTEXT_LINES))[2:]:
        yield line if line.endswith("\n") else f"{line}\n{NO_NEWLINE}"


def _one_hunk(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """All between the lines that both begin with and those that both end with, without looking for what they share there."""
    shorter = min(len(old), len(new))
    same = next((number for number in range(shorter) if old[number] != new[number]), shorter)
    rest = range(1, shorter - same + 1)
    tail = next((number - 1 for number in rest if old[-number] != new[-number]), shorter - same)
    start, end = max(0, same - CONTEXT_LINES), max(0, tail - CONTEXT_LINES)
    removed, added = old[same : len(old) - tail], new[same : len(new) - tail]
    context = old[start:same], old[len(old) - tail : len(old) - end]
    num_context = len(context[0]) + len(context[1])
    yield f"@@ -{_range(start, len(removed) + num_context)} +{_range(start, len(added) + num_context)} @@\n"
    for kind, lines in ((" ", context[0]), ("-", removed), ("+", added), (" ", context[1])):
        yield from (f"{kind}{line}" if line.endswith("\n") else f"{kind}{line}\n{NO_NEWLINE}" for line in lines)


def _range(start: int, length: int) -> str:
    return f"{start + 1 if length else start},{length}"


def _tabbed(path: str) -> str:
    """A name with a space in it ends with a tab, as patch and git have it."""
    return f"{path}\t" if " " in path else path


def _quoted(path: str) -> str:
    if all(character.isascii() and character.isprintable() and character not in QUOTED for character in path):
        return path
    escaped = (QUOTED.get(character) or _octal(character) for character in path)
    return f'"{"".join(escaped)}"'


def _octal(character: str) -> str:
    if character.isascii() and character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
