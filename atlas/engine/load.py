"""The way into the in-process engine, without importing it: llama_cpp costs 0.3 s and what its libraries cost."""

from __future__ import annotations

from pathlib import Path

from atlas.engine.face import Engine
from atlas.settings import EngineSettings


async def load_engine(path: Path, *, model_id: str, settings: EngineSettings) -> Engine:
    """Load a GGUF file into this process; seconds to minutes, off the event loop.

    Raises:
        ModelFileError: the file cannot be loaded, its context does not fit in memory, or the embedder cannot be had.
    """
    from atlas.engine.engine import load_llama  # only the serving process needs llama_cpp

    return await load_llama(path, model_id=model_id, settings=settings)
