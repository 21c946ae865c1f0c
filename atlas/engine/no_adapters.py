"""What an engine answers that has no adapters of its own, and is always awake."""

from __future__ import annotations

from pathlib import Path

from atlas.errors import ModelNotFound, Unsupported
from atlas.types import AdapterInfo, Capabilities


class NoAdapters:
    """For an engine class to inherit."""

    capabilities: Capabilities
    is_asleep = False

    def adapters(self) -> tuple[AdapterInfo, ...]:
        return ()

    async def load_adapter(self, name: str, path: Path, *, scale: float = 1.0) -> AdapterInfo:
        raise Unsupported(f"adapter '{name[:100]}': only a model that runs in this process takes adapters", param="name")

    async def drop_adapter(self, name: str) -> None:
        raise ModelNotFound(f"model '{self.capabilities.model}' has no adapter '{name[:100]}'; it takes none here", param="model")
