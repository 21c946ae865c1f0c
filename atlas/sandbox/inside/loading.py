"""The candidate as a module, and its entry point."""

from __future__ import annotations

import builtins
import os
import sys

from atlas.sandbox.inside import faults

TYPE_CHECKING = False
if TYPE_CHECKING:  # see frames.py
    from collections.abc import Callable
    from types import CodeType, ModuleType
    from typing import Any

NAME = "solution"
FILE = "solution.py"


class Missing(LookupError):
    """The candidate has no such entry point."""


def load(send: Callable[[dict[str, Any]], None]) -> ModuleType | None:
    """Compile and execute the candidate. One frame: `loaded`, or `compile` or `fault`, what it died of."""
    directory = os.getcwd()
    path = f"{directory}/{FILE}"
    sys.path.insert(0, directory)
    try:
        code = compile_file(path)
    except BaseException as error:  # whatever the compiler makes of it
        send({"compile": faults.describe(error, trace=True)})
        return None
    module = new_module(NAME, path)
    try:
        exec(code, module.__dict__)
    except BaseException as error:  # sys.exit at import as well
        send({"fault": faults.describe(error, trace=True)})
        return None
    send({"loaded": True})
    return module


def compile_file(path: str) -> CodeType:
    descriptor = os.open(path, os.O_RDONLY)  # a file object would be the only one of its kind in the box
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        return compile(os.pread(descriptor, size, 0), path, "exec", dont_inherit=True)
    finally:
        os.close(descriptor)


def new_module(name: str, path: str) -> ModuleType:
    module = type(sys)(name)
    module.__dict__.update(__file__=path, __builtins__=builtins)
    sys.modules[name] = module
    return module


def find_entry(module: ModuleType, entry: str) -> tuple[str, str]:
    """Where the entry point is: the class, or "", and the name of the function.

    A bare name that only `class Solution` has is a method of it.

    Raises:
        Missing: the candidate has no such thing.
    """
    owner, _, name = entry.rpartition(".")
    if not owner and not hasattr(module, name) and hasattr(getattr(module, "Solution", None), name):
        owner = "Solution"
    if owner and not hasattr(module, owner):
        raise Missing(f"the code defines no class {owner}")
    if not callable(getattr(getattr(module, owner) if owner else module, name, None)):
        raise Missing(f"the code defines no function {entry}")
    return owner, name


def bind(module: ModuleType, owner: str, name: str) -> Callable[..., Any]:
    """What is called once: a function, or a method of an instance made for the occasion."""
    holder = getattr(module, owner)() if owner else module
    function: Callable[..., Any] = getattr(holder, name)
    return function
