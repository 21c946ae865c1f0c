"""Which tier of isolation this machine gives: found out once, by jobs that try to get out, and never lowered afterwards."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from atlas.errors import SandboxRefused, SandboxUnavailable
from atlas.sandbox.boxes import Boxes
from atlas.sandbox.native import NativeBoxes
from atlas.settings import SandboxSettings
from atlas.types import Layer, Tier

MAX_SLOTS = 20


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        boxes: None if code is not to be run here; `reason` says why.
        tier: None likewise.
        layers: every layer of isolation, with the command that mends it where it is missing.
    """

    boxes: Boxes | None
    tier: Tier | None
    reason: str = ""
    layers: tuple[Layer, ...] = ()


async def choose(settings: SandboxSettings, *, is_unsafe: bool = False) -> Choice:
    """The strongest tier that holds here; boxes that are started, or none."""
    try:
        boxes = NativeBoxes(python=interpreter(settings.python), uid=settings.uid, slots=num_slots(settings.slots))
        await boxes.start()
    except (SandboxRefused, SandboxUnavailable) as error:
        return Choice(boxes=None, tier=None, reason=error.message)
    return Choice(boxes=boxes, tier="native", reason="")


def num_slots(wanted: int) -> int:
    """Never more than there are processors, unless somebody asks for it."""
    return min(wanted or os.cpu_count() or 1, MAX_SLOTS)


def interpreter(configured: str) -> str:
    """The interpreter that boxes run: a program, or the virtual environment it lies in; by default ours.

    Raises:
        SandboxRefused: there is none.
    """
    if not configured:
        return sys.executable
    path = Path(configured).expanduser().absolute()
    if path.is_dir():
        path = path / "bin" / "python"
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise SandboxRefused(
            f"sandbox.python = {configured!r}: {path} is not a program; name an interpreter or a venv's directory"
        )
    return str(path)
