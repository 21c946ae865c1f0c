"""How often one caller may do something that tells about secrets."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from atlas.errors import TooManyAttempts


class Throttle:
    """At most `limit` times in any `window_s` per caller. Callers are accounts we know, so their number is bounded; in memory."""

    def __init__(self, limit: int, *, window_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._window_s = window_s
        self._clock = clock
        self._times: dict[str, deque[float]] = {}

    def count(self, caller: str) -> None:
        """Count one time.

        Raises:
            TooManyAttempts: it would be one too many; it is not counted.
        """
        times = self._times.setdefault(caller, deque(maxlen=self._limit))
        now_s = self._clock()
        if len(times) == self._limit and now_s - times[0] < self._window_s:
            wait_s = self._window_s - (now_s - times[0])
            raise TooManyAttempts(
                f"more than {self._limit} times in {self._window_s:.0f} s; try again in {math.ceil(wait_s)} s",
                retry_after_s=wait_s,
            )
        times.append(now_s)
