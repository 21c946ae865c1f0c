"""A project's files as they lie there: what an edit reads, and a digest of everything that a run of tests could read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from atlas.errors import BadRequest
from atlas.sandbox.edits_tree import FILE_LIMIT_BYTES, Rejected, reject

MAX_FILES = 300_000
HISTORY = (".git", ".hg", ".svn")  # hidden: an answer may lie in it
CACHES = frozenset({"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".cache"})
ENVIRONMENTS = frozenset({"node_modules", ".tox", ".nox"})  # as are directories with a pyvenv.cfg


class Survey(NamedTuple):
    """What a walk through a project found; all paths are relative.

    `digest` stands for every file by its size, times and number: another one when anything was changed.
    """

    files: tuple[str, ...]
    environments: tuple[str, ...]
    histories: tuple[str, ...]
    digest: str


def survey(directory: Path) -> Survey:
    """Walk through a project.

    Raises:
        BadRequest: it cannot be read, or is too large to be somebody's project.
    """
    files: list[str] = []
    found: dict[str, list[str]] = {"environments": [], "histories": []}
    digest = hashlib.sha256()
    for path, entry, place in _walk(directory, ""):
        if place:
            found[place].append(path)
            continue
        seen = entry.stat(follow_symlinks=False)
        files.append(path)
        facts = (path, seen.st_mode, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)
        digest.update(repr(facts).encode("utf-8", "surrogateescape"))
        if len(files) > MAX_FILES:
            raise BadRequest(f"{directory} has more than {MAX_FILES} files; name the project itself", param="directory")
    return Survey(tuple(files), tuple(found["environments"]), tuple(found["histories"]), digest.hexdigest())


def _walk(directory: Path, below: str) -> Iterator[tuple[str, os.DirEntry[str], str]]:
    """Path, entry, and what kind of place it is if it is not walked through."""
    try:
        entries = sorted(os.scandir(directory / below), key=lambda entry: entry.name)
    except OSError as error:
        raise BadRequest(f"{directory / below}: {error.strerror}", param="directory") from None
    for entry in entries:
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.name in HISTORY:
            yield path, entry, "histories"
        elif not entry.is_dir(follow_symlinks=False):
            yield path, entry, ""
        elif entry.name in ENVIRONMENTS or (directory / path / "pyvenv.cfg").exists():
            yield path, entry, "environments"
        elif entry.name not in CACHES:
            yield from _walk(directory, path)


def read_text(directory: Path, path: str) -> str | None:
    """Text of a file that an edit may change; None if there is none.

    Raises:
        Rejected: it is not a text file, too large, or behind a link.
    """
    place = directory
    for part in path.split("/"):
        place /= part
        kind = _kind(place)
        if kind is None:
            return None
        if stat.S_ISLNK(kind):
            link = place.relative_to(directory)
            raise reject("unsupported", f"{path}: {link} is a symbolic link; edit the file it leads to", path=path)
    if stat.S_ISDIR(kind or 0):
        raise reject("unsupported", f"{path} is a directory", path=path)
    return _text(place, path)


def _kind(place: Path) -> int | None:
    try:
        return place.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise reject("unsupported", f"{place.name}: {error.strerror}", path=place.name) from None


def _text(place: Path, path: str) -> str:
    seen = place.lstat()
    if not stat.S_ISREG(seen.st_mode):
        raise reject("unsupported", f"{path} is not a file", path=path)
    if seen.st_size > FILE_LIMIT_BYTES:
        raise reject("too_large", f"{path} has {seen.st_size} bytes; {FILE_LIMIT_BYTES} are the most", path=path)
    try:
        text = place.read_bytes().decode()
    except OSError as error:
        raise reject("unsupported", f"{path}: {error.strerror}", path=path) from None
    except UnicodeDecodeError:
        raise _not_text(path) from None
    if "\0" in text:
        raise _not_text(path)
    return text


def _not_text(path: str) -> Rejected:
    return reject("unsupported", f"{path} is not text in UTF-8", path=path)


def digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
