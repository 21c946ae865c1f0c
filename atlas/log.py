"""Logging: one event per thing that happened, to stderr; console on a terminal, JSON lines otherwise. The latest stay in memory.

Prompts and code are never logged. Keys and tokens are cut out of whatever reaches a line, but this is a net under the code that
must not log them, not a licence to. A password in the middle of a free text is not recognised.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, TextIO, cast

import msgspec
import structlog

# Our keys, what follows "Bearer", JSON Web Tokens, tokens in links.
_SECRET = re.compile(r"sk-llm-[0-9A-Za-z]+|(?i:(?<=bearer )\S+)|eyJ[\w-]+\.[\w-]+\.[\w-]+|(?i:(?<=token=)[^&\s]+)")
_HINTS = (
    "sk-llm-",
    "bearer ",
    "eyj",
    "token=",
)  # in lower case: without one of these there is no secret; cheaper than the pattern
_SECRET_NAMES = re.compile(r"(?i)^(.*_)?(password|passwd|secret|token|api_?key|authorization|cookie|csrf|pepper|invitation)$")
REDACTED = "[redacted]"
_PLAIN = (int, float)  # a union in their place would be made anew on each call
_LISTS = (list, tuple)
MAX_RECENT = 2000  # lines kept for the Logs page
MAX_VALUE_CHARS = 4000  # of one value of a kept line: a long traceback is cut
TICK_INTERVAL_S = 0.5  # a reader of the kept lines hears of new ones this often


class RecentLines:
    """The latest events, redacted as on stderr; written by any thread, read by those who watch."""

    def __init__(self, max_lines: int = MAX_RECENT) -> None:
        self._lines: deque[dict[str, Any]] = deque(maxlen=max_lines)
        self._num_kept = 0

    def lines(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Oldest first; each has `timestamp`, `level`, `event`, and what was said with it."""
        lines = list(self._lines)
        return lines if limit is None else lines[-limit:]

    async def changes(self) -> AsyncIterator[int]:
        """How many lines there have been, at once and then whenever there are more, at most twice a second."""
        seen = -1
        while True:
            if seen != self._num_kept:
                seen = self._num_kept
                yield seen
            await asyncio.sleep(TICK_INTERVAL_S)

    def keep(self, _logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """A structlog processor; comes after `redact`."""
        self._lines.append({name: _shortened(value) for name, value in event.items() if not name.startswith("_")})
        self._num_kept += 1
        return event


class Enduring:
    """A stream whose lines are lost where it cannot take them: a full disk under the log must not fail what is logged.

    To the process's own standard error they go without a buffer: what waited in one would fail the end of the process.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = stream.fileno() if stream is sys.__stderr__ else None

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            if self._descriptor is None:
                self._stream.write(text)
            else:
                os.write(self._descriptor, text.encode(self._stream.encoding, "backslashreplace"))

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


RECENT = RecentLines()
_least = logging.NOTSET  # level that is logged; a logger can say so as well, but is made anew for each question


def configure_logging(level: str, *, form: str = "auto") -> None:
    """Send structlog's and the standard library's events to stderr.

    Args:
        level: the least that is shown: debug, info, warning or error.
        form: console, json, or auto: console on a terminal.
    """
    global _least  # of the process, as structlog's own configuration is
    _least = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
        RECENT.keep,
    ]
    renderer = _renderer(form)
    stream = cast("TextIO", Enduring(sys.stderr))
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # Our own events skip the standard library: a line per request has to be cheap (23 instead of 43 us, measured).
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_least),
        logger_factory=structlog.WriteLoggerFactory(
            stream
        ),  # a line and its end in one write: other processes have this stderr, too
        cache_logger_on_first_use=False,
    )


def is_logged(level: int) -> bool:
    """Whether an event of this level is shown: not worth making where it is not."""
    return level >= _least


def redact(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Replace secrets by name and by shape, in nested values too."""
    if _is_harmless(event):
        return event
    return {name: _redact(name, value) for name, value in event.items()}


def _is_harmless(event: structlog.typing.EventDict) -> bool:
    """Nearly every event: flat, without a secret's name, and without a hint of one in its texts taken together."""
    texts = []
    for name, value in event.items():
        if _is_secret(name):
            return False
        if isinstance(value, str):
            texts.append(value)
        elif value is not None and not isinstance(value, _PLAIN):
            return False
    text = "\n".join(texts).lower()
    return not any(hint in text for hint in _HINTS)


def _redact(name: str, value: Any) -> Any:  # a log value is anything
    if isinstance(value, str):
        if _is_secret(name):
            return REDACTED
        lower = value.lower()
        return _SECRET.sub(REDACTED, value) if any(hint in lower for hint in _HINTS) else value
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, bytes) and _is_secret(name):
        return REDACTED
    if isinstance(value, Mapping):
        return {key: _redact(str(key), item) for key, item in value.items()}
    if isinstance(value, _LISTS):
        return [_redact(name, item) for item in value]
    return value


@functools.lru_cache(maxsize=512)
def _is_secret(name: str) -> bool:
    return _SECRET_NAMES.match(name) is not None


def _shortened(value: Any) -> Any:  # a log value is anything
    return value[:MAX_VALUE_CHARS] if isinstance(value, str) else value


def _renderer(form: str) -> structlog.typing.Processor:
    if form == "console" or (form == "auto" and sys.stderr.isatty()):
        # The default formatter would print local variables, and with them prompts and keys.
        return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    return _to_json


def _to_json(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    return _encoder.encode(event).decode()


_encoder = msgspec.json.Encoder(enc_hook=repr)
