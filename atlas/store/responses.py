"""Answers of the Responses API that may be gone on from: a file each, with the conversation up to its end.

Not in the ledger, which all requests wait for. A file is whole or not there; the last ones may be lost with the power, and who
wants to go on from one is told so and sends the conversation instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog

from atlas.errors import LedgerUnavailable
from atlas.types import Value

log = structlog.get_logger("atlas.store")

COMPRESSION = 1  # zlib's fastest; chosen, unmeasured

_ID = re.compile(r"resp_[0-9a-f]{24}")


class KeptResponse(Value, frozen=True, kw_only=True):
    """One answer.

    Attributes:
        owner: whose it is; to anybody else it is not there.
        items: the conversation in the API's items, the answer's own at its end; instructions are no part of it.
        reply: the JSON that the client was given.
    """

    owner: str
    items: list[dict[str, Any]]
    reply: msgspec.Raw


class KeptResponses:
    """The folder `blobs/responses` of a data directory. Safe to use from several tasks.

    Args:
        keep_s: how long each is kept; 0 keeps none.
        limit_bytes: of all files together, compressed; beyond it the oldest go, hour by hour (`prune`).
    """

    def __init__(self, folder: Path, *, keep_s: float, limit_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._keep_s = keep_s
        self._limit_bytes = limit_bytes
        self._clock = clock

    @property
    def is_on(self) -> bool:
        return self._keep_s > 0

    async def keep(self, response_id: str, kept: KeptResponse) -> bool:
        """Whether it is kept; the disk may not take it, which the log says."""
        try:
            await asyncio.to_thread(self._write, self._path(response_id), kept)
        except OSError as error:
            log.warning("response.not_kept", reason=error.strerror)
            return False
        return True

    async def find(self, response_id: str, *, owner: str) -> KeptResponse | None:
        """None if there is none of this id, or no longer, or if it is somebody else's."""
        if not _ID.fullmatch(response_id):
            return None
        kept = await asyncio.to_thread(self._read, self._path(response_id))
        return kept if kept is not None and kept.owner == owner else None

    async def remove(self, response_id: str, *, owner: str) -> bool:
        """Whether there was one. Later answers of the conversation have it in them, and stay.

        Raises:
            LedgerUnavailable: the disk does not let it go.
        """
        if await self.find(response_id, owner=owner) is None:
            return False
        try:
            await asyncio.to_thread(self._path(response_id).unlink, missing_ok=True)
        except OSError as error:
            raise LedgerUnavailable(f"the answer cannot be deleted now: {error.strerror}") from None
        return True

    def prune(self) -> int:
        """Remove those that have had their time, and the oldest of too many; how many. What the disk does not let go stays."""
        oldest_first = sorted(self._ages())
        excess_bytes = sum(size for _, size, _ in oldest_first) - self._limit_bytes
        num_removed = 0
        for at, size, path in oldest_first:
            if excess_bytes <= 0 and at > self._clock() - self._keep_s:
                break
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("responses.not_pruned", reason=error.strerror)
                break
            excess_bytes -= size
            num_removed += 1
        return num_removed

    def _ages(self) -> Iterator[tuple[float, int, Path]]:
        """(when it was written, bytes, path) of each file."""
        for path in self._folder.glob("*"):  # nothing where there is no folder
            with contextlib.suppress(FileNotFoundError):  # taken back meanwhile
                status = path.stat()
                yield status.st_mtime, status.st_size, path

    def _path(self, response_id: str) -> Path:
        return self._folder / response_id

    def _write(self, path: Path, kept: KeptResponse) -> None:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(zlib.compress(msgspec.json.encode(kept), COMPRESSION))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _read(self, path: Path) -> KeptResponse | None:
        try:
            if path.stat().st_mtime <= self._clock() - self._keep_s:
                return None
            return msgspec.json.decode(zlib.decompress(path.read_bytes()), type=KeptResponse)
        except FileNotFoundError:
            return None
        except (OSError, zlib.error, msgspec.MsgspecError) as error:  # damaged: as good as lost
            log.warning("response.unreadable", path=str(path), reason=str(error))
            return None
