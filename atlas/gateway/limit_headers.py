"""What is left of the limits, as headers: OpenAI's x-ratelimit-limit-requests and so on, and X-RateLimit-* of ATLAS 1."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from functools import lru_cache

from atlas.store import Window

RawHeader = tuple[bytes, bytes]


def limit_headers(windows: Iterable[Window]) -> list[RawHeader]:
    """Both families; the second knows requests only. Header names are not case sensitive."""
    headers: list[RawHeader] = []
    for window in windows:
        limit, remaining, reset = b"%d" % window.limit, b"%d" % window.remaining, to_duration(window.reset_s).encode()
        if window.kind == "tokens":
            headers += (
                (b"x-ratelimit-limit-tokens", limit),
                (b"x-ratelimit-remaining-tokens", remaining),
                (b"x-ratelimit-reset-tokens", reset),
            )
        else:
            headers += (
                (b"x-ratelimit-limit-requests", limit),
                (b"x-ratelimit-remaining-requests", remaining),
                (b"x-ratelimit-reset-requests", reset),
                (b"x-ratelimit-limit", limit),
                (b"x-ratelimit-remaining", remaining),
                (b"x-ratelimit-reset", b"%d" % math.ceil(time.time() + window.reset_s)),
            )
    return headers


@lru_cache  # the window of requests is always as long
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
