"""When a server that fails is left alone: five failures in half a minute open the breaker, then one probe at a time asks again.

The three numbers are chosen (docs/fallback.md); unmeasured.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

FAILURES = 5
WINDOW_S = 30.0
OPEN_S = 15.0
HOLD_LIMIT_S = 60.0  # of a Retry-After: a server that asks for an hour is asked again before

State = Literal["closed", "probing", "open"]


class Breaker:
    """Of one server. Lives in the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._is_open = self._is_probing = False
        self._shut_until_s = 0.0  # while it is open: when the next probe may go
        self._held_until_s = 0.0  # the server itself has asked for it

    @property
    def state(self) -> State:
        """As it stands; `probing`: one request is out to see, and the others wait for what it shows."""
        if not self._is_open:
            return "closed"
        return "probing" if self._is_probing else "open"

    @property
    def wait_s(self) -> float:
        """How long the server is left alone from now on; 0 if the next request may go to it."""
        until_s = max(self._held_until_s, self._shut_until_s if self._is_open else 0.0)
        return max(0.0, until_s - self._clock())

    def enter(self) -> None:
        """A request goes to the server, as `wait_s` allows; of an open breaker, the probe: it has `OPEN_S` to show something."""
        if self._is_open:
            self._is_probing = True
            self._shut_until_s = self._clock() + OPEN_S

    def failed(self) -> None:
        now_s = self._clock()
        self._failures.append(now_s)
        is_too_often = len(self._failures) == FAILURES and now_s - self._failures[0] <= WINDOW_S
        if self._is_open or is_too_often:
            self._is_open, self._is_probing = True, False
            self._shut_until_s = now_s + OPEN_S

    def succeeded(self) -> None:
        """What was sent before it opened closes it as little as what has failed meanwhile: only the probe does."""
        if self._is_probing:
            self._is_open = self._is_probing = False
            self._failures.clear()

    def hold(self, wait_s: float) -> None:
        """The server asks to be left alone for so long; that is no failure."""
        self._held_until_s = max(self._held_until_s, self._clock() + min(wait_s, HOLD_LIMIT_S))
