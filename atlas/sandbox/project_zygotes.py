"""Fork servers whose boxes see a project: one for each that was asked for of late."""

from __future__ import annotations

import asyncio
from pathlib import Path

from atlas.errors import BadRequest
from atlas.sandbox.boxes import ProjectMount
from atlas.sandbox.zygotes import Configuration, Zygote

MAX_IDLE = 2  # each holds some 15 MB
PROFILE = "project"

Key = tuple[str, int, int, tuple[str, ...]]


class ProjectZygotes:
    """Started when first asked for. Used from one event loop."""

    def __init__(self, *, python: str, uid: int) -> None:
        self._python = python
        self._uid = uid
        self._zygotes: dict[Key, Zygote] = {}  # the one used last comes last
        self._lock = asyncio.Lock()

    def __len__(self) -> int:
        return sum(zygote.is_alive for zygote in self._zygotes.values())

    async def choose(self, project: ProjectMount) -> Zygote:
        """One that shows this directory, as it is there now.

        Raises:
            BadRequest: there is no such directory.
            SandboxUnavailable: it could not be started.
        """
        key = _key(project)
        async with self._lock:
            zygote = self._zygotes.pop(key, None)
            if zygote is None or not zygote.is_alive:
                zygote = await self._start(project)
            self._zygotes[key] = zygote
            await self._shed()
        return zygote

    async def _start(self, project: ProjectMount) -> Zygote:
        zygote = Zygote(
            Configuration(
                profile=PROFILE, python=self._python, uid=self._uid, read_only=project.read_only, project=project.directory
            )
        )
        await zygote.start()
        return zygote

    async def _shed(self) -> None:
        """End those that nobody has used for longest."""
        idle = [key for key, zygote in list(self._zygotes.items())[:-1] if zygote.num_boxes == 0]
        for key in idle[: max(0, len(self._zygotes) - MAX_IDLE)]:
            await self._zygotes.pop(key).stop()

    async def close(self) -> None:
        for zygote in self._zygotes.values():
            await zygote.stop()
        self._zygotes.clear()


def _key(project: ProjectMount) -> Key:
    """A directory that was made anew is another one."""
    try:
        seen = Path(project.directory).stat()
    except OSError as error:
        raise BadRequest(f"{project.directory}: {error.strerror}", param="directory") from None
    return project.directory, seen.st_dev, seen.st_ino, project.read_only
