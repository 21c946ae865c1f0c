"""An exception as JSON: for the pool, and for people."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # see frames.py
    from typing import Any

TEXT_LIMIT = 2000
TRACE_LIMIT = 4000
TRACE_FRAMES = -12  # the innermost
OURS = os.path.dirname(__file__)


def describe(error: BaseException, *, trace: bool = False) -> dict[str, Any]:
    """Type, message, and what names a limit; the candidate's own code may run in this."""
    fault: dict[str, Any] = {"type": type(error).__name__[:TEXT_LIMIT], "message": text_of(error)}
    if isinstance(error, OSError) and type(error.errno) is int:
        fault["errno"] = error.errno
    if isinstance(error, SyntaxError) and type(error.lineno) is int:
        fault["line"] = error.lineno
    if trace:
        fault["trace"] = trace_of(error)
    return fault


def names_limit(error: BaseException) -> bool:
    """Whether it may be the sign of a limit; the pool decides (outcomes.py)."""
    if isinstance(error, OSError):
        return error.errno in (errno.EAGAIN, errno.EFBIG, errno.ENOSPC)
    return isinstance(error, (MemoryError, RuntimeError)) and not isinstance(error, (RecursionError, NotImplementedError))


def text_of(error: BaseException) -> str:
    try:
        return str.__str__(str(error))[:TEXT_LIMIT]
    except BaseException:  # its __str__ is the candidate's
        return "(its text cannot be had)"


def trace_of(error: BaseException) -> str:
    """The traceback without frames of ours; its end, if it is long."""
    import traceback

    try:
        report = traceback.TracebackException.from_exception(error, limit=TRACE_FRAMES)
        report.stack[:] = [frame for frame in report.stack if not frame.filename.startswith(OURS)]
        return "".join(report.format())[-TRACE_LIMIT:]
    except BaseException:
        return ""
