"""Whether an answer has begun to repeat itself: a model in a loop never gets out of it, and spends its whole length there."""

from __future__ import annotations

PROBE_CHARS = 40
MAX_PERIOD_CHARS = 400
MIN_PERIODS = 6
MIN_CHARS = 600  # chosen: a table of equal rows in honest code is shorter


def repeats(text: str) -> bool:
    """Whether the end of `text` is one piece over and over: six times or more, and 600 characters or more."""
    period = _period(text)
    span = max(MIN_PERIODS * period, MIN_CHARS)
    if not period or len(text) < span:
        return False
    tail = text[-span:]
    return tail[period:] == tail[:-period]


def _period(text: str) -> int:
    """How far back the last few characters stood before; 0 if nowhere near."""
    probe = text[-PROBE_CHARS:]
    earlier = text.rfind(probe, max(0, len(text) - PROBE_CHARS - MAX_PERIOD_CHARS), len(text) - 1)
    return 0 if earlier < 0 else len(text) - len(probe) - earlier
