"""What is left of the limits, as headers: OpenAI's x-ratelimit-limit-requests and so on, and X-RateLimit-* of ATLAS 1."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from atlas.store import Window

RawHeader = tuple[bytes, bytes]


def limit_headers(windows: Iterable[Window]) -> list[RawHeader]:
    """Both families; the second knows requests only. Header names are not case sensitive."""
    headers: list[RawHeader] = []
    for window in windows:
        kind = window.kind.encode()
        headers += (
            (b"x-ratelimit-limit-" + kind, b"%d" % window.limit),
            (b"x-ratelimit-remaining-" + kind, b"%d" % window.remaining),
            (b"x-ratelimit-reset-" + kind, to_duration(window.reset_s).encode()),
        )
        if window.kind == "requests":
            headers += (
                (b"x-ratelimit-limit", b"%d" % window.limit),
                (b"x-ratelimit-remaining", b"%d" % window.remaining),
                (b"x-ratelimit-reset", b"%d" % math.ceil(time.time() + window.reset_s)),
            )
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
