"""Downloads of models that somebody started on the Models page."""

from __future__ import annotations

import asyncio
import time

import structlog

from atlas.engine import ModelRegistry
from atlas.errors import AtlasError, Conflict

log = structlog.get_logger("atlas.dashboard")

KEPT_MAX = 20  # ended downloads that are still shown


class Pull:
    """One download. Progress comes from its thread, the end from the event loop.

    Attributes:
        here_bytes: on disk now.
        total_bytes: None while the server has not said.
        error: why it failed; empty while it runs and when all is well.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.here_bytes = 0
        self.total_bytes: int | None = None
        self.error = ""
        self.is_done = False
        self.started_at = time.time()

    def progress(self, here_bytes: int, total_bytes: int | None) -> None:
        self.here_bytes, self.total_bytes = here_bytes, total_bytes

    @property
    def share(self) -> float | None:
        return self.here_bytes / self.total_bytes if self.total_bytes else None


class Pulls:
    """Used from the event loop only. A download goes on when the page is closed; a later attempt resumes one that broke off."""

    def __init__(self) -> None:
        self._pulls: dict[str, Pull] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def shown(self) -> list[Pull]:
        """Newest first."""
        return sorted(self._pulls.values(), key=lambda pull: -pull.started_at)

    def start(self, registry: ModelRegistry, name: str) -> Pull:
        """Begin in a thread.

        Raises:
            ModelFileError: the catalogue has no such name, and it is no address of a GGUF file.
            Conflict: it is being downloaded.
        """
        registry.url(name)
        if name in self._pulls and not self._pulls[name].is_done:
            raise Conflict(f"{name} is being downloaded already")
        pull = self._pulls[name] = Pull(name)
        for old in self.shown()[KEPT_MAX:]:
            if old.is_done:
                del self._pulls[old.name]
        task = asyncio.create_task(self._run(registry, pull))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return pull

    async def _run(self, registry: ModelRegistry, pull: Pull) -> None:
        try:
            await asyncio.to_thread(registry.pull, pull.name, progress=pull.progress)
        except AtlasError as error:
            pull.error = error.message
        except Exception:  # a full disk, a bug: the page has to say that it is over; the log says why
            log.exception("model.pull_failed", name=pull.name)
            pull.error = "the download failed unexpectedly; the log has the reason"
        pull.is_done = True
