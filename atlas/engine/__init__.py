"""Every model in this process.

An engine takes a `Prompt` and returns a `Group`: n candidates of one prompt, streamed together, each handed on the moment it
ends. Three engines show this face: a llama.cpp context in this process, any OpenAI-compatible server, and a script for tests.
"""

from atlas.engine.face import Engine
from atlas.engine.group import Group
from atlas.engine.load import load_engine
from atlas.engine.loaded import LoadedModels
from atlas.engine.pull import download
from atlas.engine.registry import ModelRegistry
from atlas.engine.remote import RemoteEngine
from atlas.engine.scripted import ScriptedEngine
from atlas.engine.upstream import Upstream, Upstreams

__all__ = [
    "Engine",
    "Group",
    "LoadedModels",
    "ModelRegistry",
    "RemoteEngine",
    "ScriptedEngine",
    "Upstream",
    "Upstreams",
    "download",
    "load_engine",
]
