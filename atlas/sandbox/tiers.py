"""Which tier of isolation this machine gives: found out once, by jobs that try to get out, and never lowered afterwards."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import structlog

from atlas.errors import AtlasError, SandboxRefused, SandboxUnavailable
from atlas.sandbox.boxes import Boxes
from atlas.sandbox.contract import check_contract
from atlas.sandbox.exec_boxes import ExecBoxes
from atlas.sandbox.inside.kernel import MACHINES
from atlas.sandbox.inside.view import covered_by_box, interpreter_paths
from atlas.sandbox.native import NativeBoxes
from atlas.settings import SandboxSettings
from atlas.types import Layer, Tier

log = structlog.get_logger("atlas.sandbox")

MAX_SLOTS = 20
TIERS: tuple[Tier, ...] = ("native", "bwrap", "landlock")  # the strongest first
# Of the contract, what is tried at every start: a tier in which one of these fails is none.
PROBES = frozenset(
    {
        "a program runs and what it prints arrives",
        "a file outside cannot be read",
        "nothing can be written outside",
        "a server outside cannot be reached",
        "the number of processes is limited",
        "memory of several processes is counted together",
        "the host is as it was",
    }
)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        boxes: None if code is not to be run here; `reason` says why.
        tier: None likewise.
        reason: why it is not the strongest tier; empty if it is.
        layers: every layer of isolation, with the command that mends it where it is missing.
    """

    boxes: Boxes | None
    tier: Tier | None
    reason: str = ""
    layers: tuple[Layer, ...] = ()


async def choose(settings: SandboxSettings, *, is_unsafe: bool = False) -> Choice:
    """The strongest tier that holds here and that the settings allow; its boxes are started.

    Args:
        settings: interpreter, user, slots, and the weakest tier that may be chosen.
        is_unsafe: run code without isolation where there is none to be had; said in the log, and by every Execution.
    """
    try:
        python = interpreter(settings.python)
        _check_machine()
        if not is_unsafe:
            _check_place(python)
    except SandboxRefused as error:
        return Choice(boxes=None, tier=None, reason=error.message)
    failures: dict[str, str] = {}
    for tier in allowed(settings.min_tier):
        boxes = make(tier, settings, python)
        failure, found = await _try(boxes)
        if failure is None:
            return _choice(boxes, tier, found, failures, python)
        failures[tier] = failure
        log.info("sandbox.tier_failed", tier=tier, reason=failure)
    if is_unsafe:
        return await _go_without(make("none", settings, python), failures, python)
    reason = "; ".join(f"{tier}: {failure}" for tier, failure in failures.items())
    return Choice(boxes=None, tier=None, reason=reason + _left_out(settings.min_tier), layers=_layers(None, {}, failures, python))


def make(tier: Tier, settings: SandboxSettings, python: str) -> NativeBoxes:
    """Boxes of this tier, not started."""
    slots = num_slots(settings.slots)
    if tier == "native":
        return NativeBoxes(python=python, uid=settings.uid, slots=slots)
    return ExecBoxes(tier=tier, python=python, uid=settings.uid, slots=slots, bwrap=shutil.which("bwrap") or "")


def allowed(min_tier: Tier) -> tuple[Tier, ...]:
    return TIERS[: TIERS.index(min_tier) + 1]


def _left_out(min_tier: Tier) -> str:
    return "" if min_tier == "landlock" else f" (sandbox.min_tier = {min_tier!r})"


async def _try(boxes: NativeBoxes) -> tuple[str | None, dict[str, Any]]:
    """Why these boxes do not hold, and what they told of themselves. They are closed if they do not."""
    found: dict[str, Any] = {}
    try:
        if boxes.tier == "bwrap" and shutil.which("bwrap") is None:
            raise SandboxUnavailable("bubblewrap is not installed")
        found = await boxes.start()
        await _probe(boxes)
    except AtlasError as error:
        await boxes.close()
        return error.message, found
    return None, found


async def _probe(boxes: Boxes) -> None:
    """Try what must hold.

    Raises:
        SandboxUnavailable: it does not.
    """
    for result in await check_contract(boxes, only=PROBES):
        if not result.is_ok:
            raise SandboxUnavailable(f"it does not hold that {result.name} ({result.detail})")


def _choice(boxes: Boxes, tier: Tier, found: dict[str, Any], failures: dict[str, str], python: str) -> Choice:
    reason = "; ".join(f"{other}: {failure}" for other, failure in failures.items())
    return Choice(boxes=boxes, tier=tier, reason=reason, layers=_layers(tier, found, failures, python))


async def _go_without(boxes: NativeBoxes, failures: dict[str, str], python: str) -> Choice:
    try:
        found = await boxes.start()
    except AtlasError as error:
        await boxes.close()
        return Choice(boxes=None, tier=None, reason=f"none: {error.message}", layers=_layers(None, {}, failures, python))
    log.warning(
        "sandbox.unsafe",
        danger="code runs WITHOUT ISOLATION: it can read, change and send whatever this user can",
        reason=failures,
    )
    return _choice(boxes, "none", found, failures, python)


def _layers(tier: Tier | None, found: dict[str, Any], failures: dict[str, str], python: str) -> tuple[Layer, ...]:
    from atlas.sandbox import layers  # it asks the kernel, which on other machines there is no table for

    return layers.describe(tier, found, failures, python=python)


def _check_machine() -> None:
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        machine = f"{platform.system()} on {platform.machine()}"
        raise SandboxRefused(f"code is isolated on Linux on {' and '.join(MACHINES)} only, this is {machine}")


def _check_place(python: str) -> None:
    if covered := covered_by_box(interpreter_paths(python)):
        raise SandboxRefused(
            f"{covered[0]}: boxes have a {covered[0][:4]} of their own, so the interpreter they run must lie elsewhere; "
            "install ATLAS in another directory, or name an interpreter with sandbox.python"
        )


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
