"""What is left of the limits, as headers: OpenAI's x-ratelimit-limit-requests and so on, and X-RateLimit-* of ATLAS 1."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from atlas.store import Window

RawHeader = tuple[bytes, bytes]


_NAMES = {
    kind: [f"x-ratelimit-{what}-{kind}".encode() for what in ("limit", "remaining", "reset")] for kind in ("requests", "tokens")
}


def limit_headers(windows: Iterable[Window]) -> list[RawHeader]:
    """Both families; the second knows requests only. Header names are not case sensitive."""
    headers: list[RawHeader] = []
    for window in windows:
        limit, remaining = b"%d" % window.limit, b"%d" % window.remaining
        headers += zip(_NAMES[window.kind], (limit, remaining, to_duration(window.reset_s).encode()), strict=True)
        if window.kind == "requests":
            reset = b"%d" % math.ceil(time.time() + window.reset_s)
            headers += ((b"x-ratelimit-limit", limit), (b"x-ratelimit-remaining", remaining), (b"x-ratelimit-reset", reset))
    return headers


def to_duration(seconds: float) -> str:
    """As OpenAI writes them: 20ms, 1.2s, 6m0s, 1h0m5s; rounded up."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest_s = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest_s}s" if hours else f"{minutes}m{rest_s}s"
