"""The tiers below the native one: every box is a program of its own, started for one run."""

from __future__ import annotations

import shutil
from typing import Literal

import msgspec

from atlas.errors import SandboxUnavailable
from atlas.sandbox.boxes import BoxResult, BoxSpec
from atlas.sandbox.native import NativeBoxes
from atlas.sandbox.watch import MemoryWatch, children
from atlas.sandbox.zygotes import Configuration, Zygote

ON_DISK = "/tmp"  # noqa: S108  where a starter, whose environment is empty, makes the directories of its boxes
STARTER = "lite"  # one starter serves all profiles: what a runner imports, each run imports


class ExecBoxes(NativeBoxes):
    """`Boxes` by bubblewrap, by Landlock alone, or with nothing but limits (none). Used from one event loop."""

    prepares = False

    def __init__(
        self, *, tier: Literal["bwrap", "landlock", "none"], python: str, uid: int, slots: int, bwrap: str = "bwrap"
    ) -> None:
        super().__init__(python=python, uid=uid, slots=slots)
        self.tier = tier
        self._bwrap = bwrap
        self._per_profile = 1
        self._watch = MemoryWatch(find_in_bubblewrap if tier == "bwrap" else find_alone)

    async def warm_up(self) -> None:
        """There is nothing that could be warm."""

    async def run(self, spec: BoxSpec) -> BoxResult:
        self._check_room(spec)
        return await super().run(_with_keeper(spec))

    async def run_pair(self, tests: BoxSpec, candidate: BoxSpec) -> tuple[BoxResult, BoxResult]:
        self._check_room(candidate)
        return await super().run_pair(_with_keeper(tests), _with_keeper(candidate))

    def _check_room(self, spec: BoxSpec) -> None:
        """A disk of the host that is full must not look like a limit that the program has met.

        Raises:
            SandboxUnavailable: the program may write more than there is room for.
        """
        free, wanted = shutil.disk_usage(ON_DISK).free, spec.limits.disk_bytes
        if self.tier != "bwrap" and free < wanted:
            raise SandboxUnavailable(f"{ON_DISK} has {free} bytes free, and a program may write {wanted}: make room there")

    async def _choose(self, profile: str) -> Zygote:
        return await super()._choose(STARTER)

    def _configuration(self, profile: str) -> Configuration:
        return msgspec.structs.replace(super()._configuration(profile), tier=self.tier, bwrap=self._bwrap)


def _with_keeper(spec: BoxSpec) -> BoxSpec:
    """Of these tiers every box has one: without a pid namespace of ours nobody else tells how a program ended."""
    return msgspec.structs.replace(spec, has_keeper=True)


def find_in_bubblewrap(_: Zygote, pid: int) -> int:
    """The first process of a box, which is bubblewrap's only child."""
    return next(children(pid), 0) or _absent(pid)


def find_alone(_: Zygote, pid: int) -> int:
    return pid or _absent(pid)


def _absent(pid: int) -> int:
    raise ProcessLookupError(pid)
