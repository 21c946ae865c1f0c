"""Whole programs: the file MAIN as `python main.py` would run it.

Imported by every fresh interpreter; see frames.py for why it imports next to nothing.
"""

from __future__ import annotations

import atexit
import builtins
import posix
import sys
from _sitebuiltins import Quitter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

    from atlas.sandbox.inside.frames import Channel

MAIN = "main.py"
FAILED = 1
INTERRUPTED = 130  # as shells have it


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """Run MAIN to its end. One frame at most: `compile` or `fault`, what ended it."""
    path = f"{posix.getcwd()}/{MAIN}"
    sys.argv[:] = [MAIN]
    sys.path.insert(0, posix.getcwd())
    _complete_builtins()
    with open(path, "rb") as file:
        source = file.read()
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except BaseException as error:  # whatever the compiler makes of it
        return _tell(report, "compile", error)
    status = _execute(code, path, report)
    return _finish(status)


def _execute(code: CodeType, path: str, report: Channel) -> int:
    main = type(sys)("__main__")
    main.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = main
    try:
        exec(code, main.__dict__)
    except SystemExit as exit_:
        return _exit_status(exit_.code)
    except BaseException as error:
        return _tell(report, "fault", error)
    return 0


def _tell(report: Channel, what: str, error: BaseException) -> int:
    """Show it to the program's user and to the pool; the exit code."""
    kind = type(error)
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without ours
    error = error.with_traceback(frames)
    try:
        sys.excepthook(kind, error, frames)
    except BaseException:
        sys.__excepthook__(kind, error, frames)
    from atlas.sandbox.inside import faults

    report.send({what: faults.describe(error)})
    return INTERRUPTED if kind is KeyboardInterrupt else FAILED


def _exit_status(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)  # noqa: T201 - what an interpreter does with it
    return FAILED


def _finish(status: int) -> int:
    """End as an interpreter does: wait for threads, then what was registered for the end."""
    try:
        if threading := sys.modules.get("threading"):
            threading._shutdown()  # noqa: SLF001
        atexit._run_exitfuncs()  # noqa: SLF001
    except SystemExit as exit_:
        return _exit_status(exit_.code)
    except BaseException as error:
        sys.__excepthook__(type(error), error, error.__traceback__)
    return status


def _complete_builtins() -> None:
    """What `site` would have added and programs use."""
    if not hasattr(builtins, "exit"):
        for name in ("exit", "quit"):
            setattr(builtins, name, Quitter(name, "Ctrl-D (i.e. EOF)"))
