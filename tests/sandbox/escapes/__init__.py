"""Attacks on the sandbox, as data. They run in boxes only, never anywhere else, not even to see whether they work."""

from tests.sandbox.escapes import (
    channel,
    duration,
    kernel,
    memory,
    network,
    persistence,
    privileges,
    processes,
    reading,
    space,
    writing,
)
from tests.sandbox.escapes.escape import Escape

_MODULES = (reading, writing, processes, privileges, kernel, memory, space, duration, network, persistence, channel)
CASES: tuple[Escape, ...] = tuple(case for module in _MODULES for case in module.CASES)
