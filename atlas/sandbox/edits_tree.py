"""The project's files as an edit sees and changes them, and which paths it may name."""

from __future__ import annotations

from collections.abc import Callable

from atlas.types import EditFault, EditRejection

Read = Callable[[str], str | None]

PATH_LIMIT_BYTES = 1024
NAME_LIMIT_BYTES = 255
FILE_LIMIT_BYTES = 2 * 1024 * 1024
FORBIDDEN_NAMES = (".git", ".hg", ".svn")


class Rejected(Exception):
    """Carries an EditRejection to the one place where it becomes a value."""

    def __init__(self, rejection: EditRejection) -> None:
        super().__init__(rejection.message)
        self.rejection = rejection


def reject(fault: EditFault, message: str, *, path: str = "", block: int = 0) -> Rejected:
    """What to raise; the message is one a model can act on."""
    return Rejected(EditRejection(fault=fault, message=message, path=path, block=block))


class Tree:
    """Files as they become while an edit is applied; belongs to one call of `apply_edit`."""

    def __init__(self, read: Read, is_protected: Callable[[str], str]) -> None:
        self._read = read
        self._is_protected = is_protected
        self._before: dict[str, str | None] = {}
        self._now: dict[str, str | None] = {}

    def has(self, path: str) -> bool:
        """Whether there is such a file; a path that must not be named is none."""
        try:
            return self.text(path) is not None
        except Rejected:
            return False

    def text(self, path: str) -> str | None:
        """Of the file as it is by now; None if there is none.

        Raises:
            Rejected: no edit may name this path.
        """
        path = clean_path(path)
        if path not in self._now:
            self._before[path] = self._now[path] = self._read(path)
        return self._now[path]

    def write(self, path: str, text: str | None, *, block: int = 0) -> None:
        """Give the file at `path` another text, or delete it.

        Raises:
            Rejected: no edit may change this path.
        """
        path = clean_path(path)
        if text == self.text(path):
            return
        if why := self._is_protected(path):
            raise reject("protected", f"{path}: the edit must not change it: {why}", path=path, block=block)
        if text is not None and len(text) > FILE_LIMIT_BYTES:
            message = f"{path}: it would have {len(text)} characters; {FILE_LIMIT_BYTES} are the most"
            raise reject("too_large", message, path=path, block=block)
        self._now[path] = text

    def changes(self) -> dict[str, str | None]:
        """Files that are not what they were.

        Raises:
            Rejected: one of them would lie in another one.
        """
        changed = {path: text for path, text in sorted(self._now.items()) if text != self._before[path]}
        files = {path for path, text in self._now.items() if text is not None}
        for path in changed.keys() & files:
            if above := files & set(_parents(path)):
                raise reject("exists", f"{path}: {min(above)} is a file, so nothing can lie in it", path=path)
        return changed


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def clean_path(path: str) -> str:
    """The relative path in its one spelling.

    Raises:
        Rejected: it leads out of the project, or into what keeps its history.
    """
    if path.startswith(("/", "~")) or "\\" in path or (len(path) > 1 and path[1] == ":"):
        raise reject("outside", f"{path!r}: paths are relative to the project, with slashes", path=path)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    cleaned = "/".join(parts)
    if ".." in parts:
        raise reject("outside", f"{path!r} leads out of the project", path=path)
    if not parts or path.endswith("/") or not cleaned.isprintable():
        raise reject("outside", f"{path!r} does not name a file", path=path)
    if any(part.lower() in FORBIDDEN_NAMES for part in parts):
        raise reject("outside", f"{path}: history is not edited", path=path)
    if _size(cleaned) > PATH_LIMIT_BYTES or any(_size(part) > NAME_LIMIT_BYTES for part in parts):
        raise reject("outside", f"{path[:80]!r}...: the path is too long", path=cleaned[:80])
    return cleaned


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
