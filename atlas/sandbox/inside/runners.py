"""The programs a box can run, by name, and what a warm process of each profile has imported.

A runner is called as `runner(payload, report, peer)` in the main process of a box, after every layer of isolation stands, in the
working directory view.HOME; what it returns is the exit code. `report` takes frames to the pool, `peer` is the other box of a
pair, if there is one.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # nothing is imported here that a fresh interpreter does not need; see frames.py
    from collections.abc import Callable
    from typing import Any

    from atlas.sandbox.inside.frames import Channel

    Runner = Callable[[dict[str, Any], Channel, Channel | None], int]

# name -> module of this package, and function in it
RUNNERS = {
    "run": ("run_code", "run"),
    "candidate": ("candidate", "run"),
    "checker": ("checker", "run"),
    "execute": ("execute", "run"),
    "function": ("function", "run"),
    "lint": ("lint_code", "run"),
    "plain_checker": ("plain_tests", "run_checker"),
    "plain_tests": ("plain_tests", "run_pytest"),
    "project": ("project_run", "run"),
    "sealed_tests": ("sealed_tests", "run"),
}
# profile -> what its processes import beforehand; a runner may be used in any, it is only slower then
WARM = {
    "lite": ("run", "function", "candidate", "checker", "execute", "plain_checker"),
    "pytest": ("sealed_tests", "plain_tests"),
    "lint": ("lint",),
    "project": ("project",),
}
LIBRARY = "faults", "frames", "loading", "values", "view"


def find(name: str) -> Runner:
    """The runner of that name; its module is imported unless it is there.

    Raises:
        KeyError: there is none.
    """
    module, function = RUNNERS[name]
    runner: Runner = getattr(_load(module), function)
    return runner


def warm(profile: str) -> None:
    """Import and use once what boxes of this profile will use."""
    for name in LIBRARY:
        _load(name)
    for name in WARM[profile]:
        find(name)
        if use := getattr(_load(RUNNERS[name][0]), "warm", None):
            use()


def _load(module: str) -> Any:
    path = f"atlas.sandbox.inside.{module}"
    if path not in sys.modules:
        __import__(path)
    return sys.modules[path]
