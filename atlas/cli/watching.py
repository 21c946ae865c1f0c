"""Files that somebody edits, looked at until one of them changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

INTERVAL_S = 0.3  # between two looks; chosen
SETTLED_S = 0.2  # editors write in several steps

State = tuple[tuple[int, int, int] | None, ...]


async def changed(files: Sequence[Path]) -> None:
    """Wait until one of them is not as it was, and no more is written."""
    before = state_of(files)
    while (now := state_of(files)) == before:  # noqa: ASYNC110 - files tell nobody
        await asyncio.sleep(INTERVAL_S)
    while True:
        await asyncio.sleep(SETTLED_S)
        if (later := state_of(files)) == now and None not in later:
            return
        now = later


def state_of(files: Sequence[Path]) -> State:
    return tuple(map(_state, files))


def _state(file: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None while there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
