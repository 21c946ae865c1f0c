"""A queue in front of each engine: one that is full, or slow, keeps nobody from another."""

from __future__ import annotations

from atlas.engine import Engine
from atlas.gateway.admission import PRIORITIES, AdmissionQueue
from atlas.settings import Settings

REMOTE_SLOTS = 64  # of a remote engine, unless queue.max_running says otherwise; chosen, unmeasured


class Queues:
    """Those of an application, by the model of the engine. Lives in the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queues: dict[str, AdmissionQueue] = {}

    def of(self, engine: Engine) -> AdmissionQueue:
        model = engine.capabilities.model
        queue = self._queues.get(model)
        if queue is None:
            bounds = self._settings.queue
            slots = slots_of(engine, self._settings)
            queue = self._queues[model] = AdmissionQueue(slots, max_waiting=bounds.max_waiting, timeout_s=bounds.timeout_s)
        return queue

    def waiting(self) -> tuple[int, ...]:
        """Requests that wait for a place at some engine, by priority."""
        counts = [queue.waiting() for queue in self._queues.values()]
        return tuple(sum(each[priority] for each in counts) for priority in PRIORITIES)

    @property
    def num_running(self) -> int:
        """Requests that hold a place."""
        return sum(queue.num_running for queue in self._queues.values())

    @property
    def used(self) -> int:
        return sum(queue.used for queue in self._queues.values())

    @property
    def capacity(self) -> int:
        return sum(queue.capacity for queue in self._queues.values())


def slots_of(engine: Engine, settings: Settings) -> int:
    """Candidates handed to the engine at a time."""
    is_remote = engine.capabilities.architecture == "remote"
    return settings.queue.max_running or (REMOTE_SLOTS if is_remote else settings.engine.max_sequences)
