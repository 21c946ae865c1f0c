"""Logging: one event per thing that happened, to stderr; console on a terminal, JSON lines otherwise.

Prompts and code are never logged. Keys are cut out of whatever reaches a line, but this is a net under the code that must not
log them, not a licence to.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

import structlog

_SECRET = re.compile(r"sk-llm-[0-9A-Za-z]+|(?i:(?<=bearer )\S+)")
_SECRET_NAMES = re.compile(r"(?i)^(.*_)?(password|passwd|secret|token|api_?key|authorization|cookie|pepper)$")
REDACTED = "[redacted]"


def configure_logging(level: str, *, form: str = "auto") -> None:
    """Send structlog's and the standard library's events to stderr.

    Args:
        level: the least that is shown: debug, info, warning or error.
        form: console, json, or auto: console on a terminal.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(form)],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger("atlas").setLevel(threshold)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: logging.getLogger("atlas"),
        cache_logger_on_first_use=False,
    )


def redact(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Replace secrets by name and by shape, in nested values too."""
    return {name: _redact(name, value) for name, value in event.items()}


def _redact(name: str, value: Any) -> Any:  # a log value is anything
    if _SECRET_NAMES.match(name) and isinstance(value, str | bytes):
        return REDACTED
    if isinstance(value, str):
        return _SECRET.sub(REDACTED, value)
    if isinstance(value, Mapping):
        return {key: _redact(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(name, item) for item in value]
    return value


def _renderer(form: str) -> structlog.typing.Processor:
    if form == "console" or (form == "auto" and sys.stderr.isatty()):
        # The default formatter would print local variables, and with them prompts and keys.
        return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    return structlog.processors.JSONRenderer()
