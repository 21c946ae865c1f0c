"""Reading a unified diff, git's or plain, from an answer that may say other things around it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atlas.sandbox.edits_lines import is_windows
from atlas.sandbox.edits_tree import reject

GIT = "diff --git "
HUNK = re.compile(r"@@+ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
FENCE = re.compile(r"(?:`{3,}|~{3,})[^`]*$")
TIMESTAMP = re.compile(r"\s+\d{4}-\d\d-\d\d[ T]\d\d:.*$")
PREFIX = re.compile(r"[abciwo]/")
SIGNATURE = re.compile(r"\d+\.\d+")  # git's version, below "-- " at the end of a mail
UNSUPPORTED = ("Binary files", "GIT binary patch", "old mode", "copy from", "new file mode 12", "new file mode 16")
ESCAPED = re.compile(r'\\([0-7]{3}|[abtnvfr"\\])')
ESCAPES = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, '"': 34, "\\": 92}


class Hunk(NamedTuple):
    """One hunk.

    Attributes:
        start: index of its first old line as the diff has it; None if it has no number.
        lines: kind (space, minus, plus) and text.
        is_ended: whether the new text's last line ends with a line feed; None if nothing is said.
    """

    number: int
    start: int | None
    lines: list[tuple[str, str]]
    is_ended: bool | None = None

    @property
    def old(self) -> list[str]:
        return [text for kind, text in self.lines if kind != "+"]

    @property
    def num_leading(self) -> int:
        """Lines of context before the first change."""
        return next((number for number, (kind, _) in enumerate(self.lines) if kind != " "), len(self.lines))

    @property
    def num_trailing(self) -> int:
        return self._replace(lines=self.lines[::-1]).num_leading

    def without_ends(self, leading: int, trailing: int) -> Hunk:
        """The same change with less context around it."""
        start = None if self.start is None else self.start + leading
        return self._replace(start=start, lines=self.lines[leading : len(self.lines) - trailing])


class FilePatch(NamedTuple):
    """What the diff says of one file. A path has one or two spellings, the likelier first; none is no file."""

    old: tuple[str, ...]
    new: tuple[str, ...]
    hunks: list[Hunk]
    is_rename: bool = False


def has_patch(text: str) -> bool:
    lines = text.split("\n")
    return any(line.startswith(GIT) or _is_header(lines, number) for number, line in enumerate(lines))


def parse_patch(text: str) -> Iterator[FilePatch]:
    """All files of the diff, in order.

    Raises:
        Rejected: a hunk is not one, or the diff wants what is not done here.
    """
    lines = _unfenced((text.replace("\r\n", "\n") if is_windows(text) else text).removesuffix("\n").split("\n"))
    position = 0
    while position < len(lines):
        if lines[position].startswith(GIT):
            patch, position = _git_patch(lines, position)
            yield patch
        elif _is_header(lines, position):
            patch, position = _plain_patch(lines, position)
            yield patch
        elif lines[position].startswith("@@"):
            raise reject("malformed", "a hunk stands before any '--- a/path' and '+++ b/path'")
        else:
            position += 1


def _unfenced(lines: list[str]) -> list[str]:
    """What stands in fences, if a diff does; else everything."""
    inside: list[str] = []
    is_inside = False
    for line in lines:
        if FENCE.match(line):
            is_inside = not is_inside
        elif is_inside:
            inside.append(line)
    return inside if has_patch("\n".join(inside)) else [line for line in lines if not FENCE.match(line)]


def _is_header(lines: Sequence[str], position: int) -> bool:
    return lines[position].startswith("--- ") and position + 1 < len(lines) and lines[position + 1].startswith("+++ ")


def _plain_patch(lines: Sequence[str], position: int) -> tuple[FilePatch, int]:
    old, new = _spellings(lines[position][4:]), _spellings(lines[position + 1][4:])
    if not old and not new:
        raise reject("malformed", "a file of the diff is /dev/null on both sides")
    hunks, position = _hunks(lines, position + 2, (new or old)[0])
    return FilePatch(old, new, hunks), position


def _git_patch(lines: Sequence[str], position: int) -> tuple[FilePatch, int]:
    """From `diff --git` on: what git says about the file, then perhaps hunks."""
    both = lines[position][len(GIT) :].rstrip("\r")
    middle = (len(both) - 1) // 2
    old, new = _spellings(both[:middle]), _spellings(both[middle + 1 :])
    is_rename = False
    position += 1
    while position < len(lines) and not lines[position].startswith((GIT, "@@")) and not _is_header(lines, position):
        line = lines[position].rstrip("\r")
        if line.startswith(UNSUPPORTED):
            raise reject(
                "unsupported", f"{(new or old)[0]}: only the text of files is changed, not {line!r}", path=(new or old)[0]
            )
        old = _exactly(line, "rename from ") or (() if line.startswith("new file mode") else old)
        new = _exactly(line, "rename to ") or (() if line.startswith("deleted file mode") else new)
        is_rename = is_rename or line.startswith("rename ")
        position += 1
    if position == len(lines) or not _is_header(lines, position):
        return FilePatch(old, new, [], is_rename), position
    patch, position = _plain_patch(lines, position)
    return patch._replace(is_rename=is_rename), position


def _exactly(line: str, start: str) -> tuple[str, ...]:
    return (_unquoted(line.removeprefix(start)),) if line.startswith(start) else ()


def _spellings(text: str) -> tuple[str, ...]:
    """Of a path behind `---` or `+++`: without git's prefix and with it."""
    path = _unquoted(TIMESTAMP.sub("", text.rstrip("\r").split("\t")[0]).strip())
    if path == "/dev/null":
        return ()
    return (path[2:], path) if PREFIX.match(path) else (path,)


def _unquoted(path: str) -> str:
    """A path as git quotes it, with escapes for what is not ASCII."""
    if not (len(path) > 1 and path[0] == path[-1] == '"'):
        return path
    content = path[1:-1].encode("utf-8", "surrogatepass")
    plain = re.sub(ESCAPED.pattern.encode(), lambda found: _byte(found[1].decode()), content)
    return plain.decode("utf-8", "replace")


def _byte(escape: str) -> bytes:
    return bytes([int(escape, 8) & 0xFF if len(escape) == 3 else ESCAPES[escape]])


def _hunks(lines: Sequence[str], position: int, path: str) -> tuple[list[Hunk], int]:
    """All hunks of one file; what is said between them is passed over."""
    hunks: list[Hunk] = []
    while position < len(lines) and not _begins_file(lines, position):
        if not lines[position].startswith("@@"):
            position += 1
            continue
        number = len(hunks) + 1
        header = HUNK.match(lines[position])
        end = _counted(lines, position + 1, header) if header else None
        if end is None:
            end = _end_of_body(lines, position + 1, f"{path}, hunk {number}", path)
        hunks.append(_hunk(number, header, lines[position + 1 : end], path))
        position = end
    return hunks, position


def _begins_file(lines: Sequence[str], position: int) -> bool:
    return lines[position].startswith(GIT) or _is_header(lines, position)


def _counted(lines: Sequence[str], position: int, header: re.Match[str]) -> int | None:
    """Where the hunk ends by its own counts; None if they are wrong."""
    old, new = int(header[2] or 1), int(header[4] or 1)
    while old > 0 or new > 0:
        if position == len(lines):
            return None
        kind = lines[position][:1] or " "
        if kind not in " +-\\":
            return None
        old -= kind in " -"
        new -= kind in " +"
        position += 1
    if old < 0 or new < 0:
        return None
    while position < len(lines) and lines[position].startswith("\\"):
        position += 1
    goes_on = position < len(lines) and lines[position].startswith((" ", "+", "-"))
    return None if goes_on and not _is_end(lines, position) else position


def _is_end(lines: Sequence[str], position: int) -> bool:
    """Whether a hunk without counts ends before this line for sure."""
    line = lines[position]
    if line.startswith("-- ") and position + 1 < len(lines) and SIGNATURE.match(lines[position + 1]):
        return True
    following = "".join(lines[position + 2 : position + 3])  # what only looks like a header may be a change of such lines
    is_header = _is_header(lines, position) and (not following or following.startswith("@@"))
    return is_header or line.startswith((GIT, "@@"))


def _end_of_body(lines: Sequence[str], position: int, what: str, path: str) -> int:
    """Where a hunk without right counts ends: before the next one, or before prose."""
    start = position
    while position < len(lines) and not _is_end(lines, position) and lines[position][:1] in ("", " ", "+", "-", "\\"):
        position += 1
    end = position
    while end > start and not lines[end - 1].strip("\r"):
        end -= 1
    if position < len(lines) and not _is_end(lines, position):
        _check_prose(lines, position, what, path, is_adjacent=end == position)
    return end


def _check_prose(lines: Sequence[str], position: int, what: str, path: str, *, is_adjacent: bool) -> None:
    """What does not look like a line of a hunk may be said after it, but not in the middle of it."""
    line = lines[position]
    while position < len(lines) and not _is_end(lines, position):
        is_adjacent = is_adjacent or lines[position].startswith(("+", "-"))
        position += 1
    if is_adjacent:
        message = f"{what}: the line {line[:200]!r} begins neither with a space nor with + or -"
        raise reject("malformed", message, path=path)


def _hunk(number: int, header: re.Match[str] | None, body: Sequence[str], path: str) -> Hunk:
    lines = [(line[:1] or " ", line[1:]) for line in body if not line.startswith("\\")]
    if not lines:
        raise reject("malformed", f"{path}, hunk {number}: it has no lines", path=path, block=number)
    start = None if header is None else _start(header, has_old=any(kind != "+" for kind, _ in lines))
    return Hunk(number, start, lines, _is_ended(body))


def _start(header: re.Match[str], *, has_old: bool) -> int:
    """Index of the first old line; a hunk of none says after which line it belongs."""
    line = int(header[1])
    return line if not has_old and header[2] == "0" else max(0, line - 1)


def _is_ended(body: Sequence[str]) -> bool | None:
    marked = [body[number - 1][:1] for number in range(1, len(body)) if body[number].startswith("\\")]
    return marked[-1] == "-" if marked else None
