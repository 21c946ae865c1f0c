"""How many workers there are, as /readyz and the command line tell it."""

from __future__ import annotations

from collections.abc import Mapping


class WorkerWatch:
    """Filled by the gateway.

    Attributes:
        busy: deliveries in the hands of each connected worker, by its name.
        num_expected: processes that the server itself keeps.
    """

    def __init__(self) -> None:
        self.busy: dict[str, int] = {}
        self.num_expected = 0

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is not as it should be, in sentences. It keeps no model from answering."""
        if self.num_expected and not self.busy:
            return ("no worker is connected: tasks wait",)
        return ()

    def counts(self) -> Mapping[str, int]:
        return {"expected": self.num_expected, "connected": len(self.busy), "busy": sum(map(bool, self.busy.values()))}
