"""Whether a program makes sense, before anything is started for it."""

from __future__ import annotations

from pathlib import PurePosixPath

from atlas.errors import BadRequest
from atlas.types import Program, RunLimits

CODE_LIMIT_BYTES = 1024 * 1024
FILES_LIMIT = 1000
CASES_LIMIT = 1000
_PATH_LIMIT_CHARS = 200


def check(program: Program, limits: RunLimits) -> None:
    """Refuse what no mode can run.

    Raises:
        BadRequest: says what, and what would be right.
    """
    _check_text(program.code, "code")
    _check_text(program.test_code, "test_code")
    if len(program.cases) > CASES_LIMIT:
        raise BadRequest(f"{len(program.cases)} cases; {CASES_LIMIT} are the most", param="cases")
    _check_files(program.files, limits)


def check_entry(entry_point: str) -> None:
    """Refuse what names no function.

    Raises:
        BadRequest: it is neither `name` nor `Class.method`.
    """
    parts = entry_point.split(".")
    if len(parts) > 2 or not all(part.isidentifier() for part in parts):
        shown = entry_point[:_PATH_LIMIT_CHARS]
        raise BadRequest(f"entry_point {shown!r} names no function; give `name` or `Class.method`", param="entry_point")


def _check_text(text: str, what: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise BadRequest(f"{what} holds half a surrogate pair, which no file can hold", param=what) from None
    if size > CODE_LIMIT_BYTES:
        raise BadRequest(f"{what} has {size} bytes; {CODE_LIMIT_BYTES} are the most", param=what)


def _check_files(files: dict[str, str], limits: RunLimits) -> None:
    if len(files) > FILES_LIMIT:
        raise BadRequest(f"{len(files)} files; {FILES_LIMIT} are the most", param="files")
    size = 0
    for path, text in files.items():
        _check_path(path, files)
        try:
            size += len(text.encode())
        except UnicodeEncodeError:
            raise BadRequest(f"the file {path!r} holds half a surrogate pair", param="files") from None
    if size > limits.disk_bytes // 2:
        raise BadRequest(f"the files have {size} bytes; half of disk_bytes ({limits.disk_bytes}) is the most", param="files")


def _check_path(path: str, files: dict[str, str]) -> None:
    parts = path.split("/")
    is_plain = path.isprintable() and len(path.encode("utf-8", "replace")) <= _PATH_LIMIT_CHARS
    if not is_plain or any(part in ("", ".", "..") for part in parts):
        raise BadRequest(
            f"the file path {path[:_PATH_LIMIT_CHARS]!r} is not relative and plain, like data/words.txt", param="files"
        )
    if any(str(parent) in files for parent in PurePosixPath(path).parents):
        raise BadRequest(f"the file path {path!r} lies below another file", param="files")
