"""How the sandbox is, as /readyz and /metrics tell it: asked anew each time, but never waited for."""

from __future__ import annotations

import asyncio

from atlas.errors import AtlasError
from atlas.sandbox import Sandbox
from atlas.types import SandboxStatus

PATIENCE_S = 0.5  # a pool that tries out its tiers answers later; chosen


class SandboxWatch:
    """The state it was last seen in.

    Attributes:
        status: None until it has answered once.
        trouble: why it did not answer this time; empty if it did.
    """

    def __init__(self) -> None:
        self.status: SandboxStatus | None = None
        self.trouble = ""

    async def look(self, sandbox: Sandbox | None) -> None:
        if sandbox is None:
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                self.status = await sandbox.status()
            self.trouble = ""
        except TimeoutError:
            self.trouble = "it has not answered yet"
        except AtlasError as error:
            self.trouble = error.message

    @property
    def word(self) -> str:
        """The tier, or what stands in its place."""
        if self.trouble:
            return "starting" if self.status is None else "unavailable"
        return (self.status.tier or "refused") if self.status else ""

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is not as it should be, in sentences. It keeps no model from answering."""
        if self.trouble:
            return () if self.status is None else (f"the sandbox: {self.trouble}",)
        if self.status is None or self.status.tier not in (None, "none"):
            return ()
        if self.status.tier == "none":
            return ("code runs WITHOUT ISOLATION (--unsafe-no-sandbox)",)
        return (f"code is not run here: {self.status.reason}; `atlas doctor` says what to do",)
