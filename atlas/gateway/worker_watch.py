"""How many workers there are, as /readyz, /metrics and the command line tell it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

GRACE_S = 10.0  # in which a worker that has just been started, or started again, comes (chosen)
ENDINGS = ("done", "failed", "cancelled", "given_back", "lost", "untaken", "fenced")


class WorkerWatch:
    """Filled by the gateway, in the event loop.

    Attributes:
        num_expected: processes that the server itself keeps.
        endings: deliveries by how they ended.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy: Mapping[str, int] = {}
        self._missing_since_s = clock()
        self.num_expected = 0
        self.endings: Counter[str] = Counter()

    @property
    def busy(self) -> Mapping[str, int]:
        """Deliveries in the hands of each connected worker, by its name."""
        return self._busy

    def see(self, busy: Mapping[str, int]) -> None:
        """These are connected now."""
        if self._busy and not busy:
            self._missing_since_s = self._clock()
        self._busy = busy

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is not as it should be, in sentences. It keeps no model from answering."""
        is_missing = self.num_expected and not self._busy and self._clock() - self._missing_since_s > GRACE_S
        return ("no worker is connected: tasks wait",) if is_missing else ()

    def counts(self) -> dict[str, int]:
        num_busy = sum(map(bool, self._busy.values()))
        return {"expected": self.num_expected, "connected": len(self._busy), "busy": num_busy}
