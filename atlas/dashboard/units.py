"""Numbers, times and sizes in the words people read; None is a dash."""

from __future__ import annotations

import time
from datetime import UTC, datetime

NOTHING = "–"


def count(value: float | None) -> str:
    """1234567 -> 1.23M; up to four digits in full."""
    if value is None:
        return NOTHING
    for scale, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= scale:
            return (
                f"{value / (1e3 if suffix == 'k' else scale):.3g}{suffix}"
                if abs(value) < scale * 1e3
                else f"{value / scale:.0f}{suffix}"
            )
    return f"{value:,.0f}"


def exact(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Three digits: 0.25, 12.5, 340."""
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 100 or value == 0 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A duration: 84 ms, 1.24 s, 3 min 20 s, 2 h 5 min, 3 d."""
    if value is None:
        return NOTHING
    if value < 1:
        return f"{value * 1000:.0f} ms" if value >= 0.01 or value == 0 else f"{value * 1000:.1f} ms"
    if value < 60:
        return f"{value:.3g} s"
    if value < 3600:
        return _pair(value, 60, "min", 1, "s")
    if value < 86400:
        return _pair(value, 3600, "h", 60, "min")
    return _pair(value, 86400, "d", 3600, "h")


def size(value: float | None) -> str:
    """Bytes with decimal prefixes, as disks and downloads are sold."""
    if value is None:
        return NOTHING
    for scale, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{value / scale:.3g} {suffix}"
    return f"{value:.0f} B"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value * 100:.0f} %"


def money(millionths: float | None) -> str:
    return NOTHING if millionths is None else f"{millionths / 1e6:,.2f}" if millionths >= 1e4 else f"{millionths / 1e6:.4f}"


def moment(at: float | None) -> str:
    """Unix seconds as UTC, to the second; the browser shows local time where it can."""
    return NOTHING if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso(at: float) -> str:
    """For the datetime attribute of <time>."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(at: float | None, *, now: float | None = None) -> str:
    """How long since; what lies ahead is told as "in 3 d"."""
    if at is None:
        return "never"
    passed_s = (time.time() if now is None else now) - at
    words = "just now" if abs(passed_s) < 1.5 else _coarse(abs(passed_s))
    if words == "just now":
        return words
    return f"{words} ago" if passed_s > 0 else f"in {words}"


def _coarse(value_s: float) -> str:
    for scale, suffix in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if value_s >= scale:
            return f"{int(value_s // scale)} {suffix}"
    return f"{int(value_s)} s"


def _pair(value: float, large: int, large_name: str, small: int, small_name: str) -> str:
    first, rest = divmod(int(value), large)
    return f"{first} {large_name} {rest // small} {small_name}" if rest // small else f"{first} {large_name}"
