"""The serving process as shipped, with a scripted engine instead of a model."""

from __future__ import annotations

import asyncio
import os

from atlas.app import main
from atlas.engine import Engine, ScriptedEngine
from atlas.errors import ModelFileError
from atlas.launch import Launch


async def scripted(launch: Launch) -> Engine:
    await asyncio.sleep(float(os.environ.get("SCRIPTED_LOAD_S", "0")))
    if message := os.environ.get("SCRIPTED_FAILURE"):
        raise ModelFileError(message)
    return ScriptedEngine(
        [os.environ.get("SCRIPTED_REPLY", "one two three " * 100)], delay_s=float(os.environ.get("SCRIPTED_DELAY_S", "0"))
    )


main(scripted)
