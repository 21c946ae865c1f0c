"""Bodies of tasks: short ones lie in the ledger, long ones as files, named by content, in a folder of their task.

A file is on the disk before anything mentions it. Folders of tasks that the ledger does not have are removed, and only when they
were found so an hour or more before: a backup that runs meanwhile has already read a ledger which mentions them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from atlas.errors import BadRequest, LedgerUnavailable

INLINE_BYTES = 32 * 1024  # chosen
ORPHAN_AGE_S = 3600.0  # chosen: longer than a backup takes

_TASK_ID = re.compile(r"task_[0-9a-f]{24}")


class Stored(NamedTuple):
    """Where a body is: here, or in the blob of this name."""

    inline: bytes | None = None
    blob: str | None = None


NOWHERE = Stored()


class TaskBlobs:
    """The folder `blobs/tasks` of a data directory."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._orphans: dict[str, float] = {}  # when each was found first

    async def store(self, task_id: str, body: bytes, *, inline_bytes: int = INLINE_BYTES) -> Stored:
        """Put a body where it belongs.

        Raises:
            LedgerUnavailable: the disk does not take it.
        """
        if len(body) <= inline_bytes:
            return Stored(inline=body)
        return Stored(blob=await asyncio.to_thread(self._write, task_id, body))

    async def load(self, task_id: str, stored: Stored) -> bytes:
        """The body; empty if there was none.

        Raises:
            LedgerUnavailable: the blob cannot be read.
        """
        if stored.blob is None:
            return stored.inline or b""
        return await asyncio.to_thread(self._read, task_id, stored.blob)

    def sweep(self, known: Callable[[Collection[str]], set[str]]) -> int:
        """Remove folders of tasks that `known` does not know; how many."""
        names = {path.name for path in self._folder.iterdir()} if self._folder.is_dir() else set()
        now_s = self._clock()
        orphans = names - known(names)
        self._orphans = {name: self._orphans.get(name, now_s) for name in orphans}
        doomed = [name for name, found_s in self._orphans.items() if now_s - found_s >= ORPHAN_AGE_S]
        for name in doomed:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        return len(doomed)

    def _folder_of(self, task_id: str) -> Path:
        """Workers name tasks, and might name something else."""
        if not _TASK_ID.fullmatch(task_id):
            raise BadRequest(f"{task_id[:50]!r} is not the id of a task")
        return self._folder / task_id

    def _write(self, task_id: str, body: bytes) -> str:
        folder, name = self._folder_of(task_id), hashlib.sha256(body).hexdigest()
        partial = folder / f".{name}.{secrets.token_hex(4)}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(folder / name)
            _sync_folder(folder)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise LedgerUnavailable(f"{folder}: {error.strerror}; nothing was stored") from None
        return name

    def _read(self, task_id: str, blob: str) -> bytes:
        path = self._folder_of(task_id) / blob
        try:
            return path.read_bytes()
        except OSError as error:
            raise LedgerUnavailable(f"{path}: {error.strerror}; restore it from a backup") from None


def _sync_folder(folder: Path) -> None:
    """Names are on the disk when their folder and its parent are."""
    for path in (folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
