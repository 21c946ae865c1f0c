"""The serving process as shipped, with a scripted engine instead of a model."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from atlas.app import main
from atlas.engine import Engine, ScriptedEngine
from atlas.errors import ModelFileError
from atlas.launch import Launch


async def scripted(launch: Launch) -> Engine:
    await asyncio.sleep(float(os.environ.get("SCRIPTED_LOAD_S", "0")))
    if message := os.environ.get("SCRIPTED_FAILURE"):
        raise ModelFileError(message)
    replies = [os.environ.get("SCRIPTED_REPLY", "one two three " * 100)]
    return ScriptedEngine(replies, model=name_of(launch), delay_s=float(os.environ.get("SCRIPTED_DELAY_S", "0")))


def name_of(launch: Launch) -> str:
    """`scripted` for the stand-in that the server was started with; what is loaded later has its own."""
    stand_in = Path(launch.data_dir).with_suffix(".gguf")
    return "scripted" if launch.model is None or Path(launch.model.path) == stand_in else launch.model.id


main(scripted)
