"""The way into the in-process engine, without importing it: llama_cpp costs 0.3 s and what its libraries cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atlas.engine.face import Engine
from atlas.settings import EngineSettings

if TYPE_CHECKING:
    from atlas.engine.embedder import Embedder


async def load_engine(path: Path, *, model_id: str, settings: EngineSettings, embedder: Embedder | None = None) -> Engine:
    """Load a GGUF file into this process; seconds to minutes, off the event loop.

    Without an `embedder`, embeddings are hidden states of the loaded model.

    Raises:
        ModelFileError: the file cannot be loaded, or its context does not fit in memory.
    """
    from atlas.engine.engine import load_llama  # only the serving process needs llama_cpp

    return await load_llama(path, model_id=model_id, settings=settings, embedder=embedder)
