"""Whose rows the next step holds: llama.cpp applies one adapter to all rows of a decode, so those with different ones take turns.

A switch makes llama.cpp plan its graph anew. Measured on a CPU (docs/log.md): 0.8 ms for the smallest model there is, 1.2 to 4 ms
for nano, as much as a step of a few rows; for Qwen3-14B a few milliseconds, by the number of its layers. So whoever has the turn
keeps it for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

TURN_S = 0.05  # a switch of 1 to 4 ms is then 2 to 8 % of the time, and each adapter adds this much to the others' longest pause


class Running(Protocol):
    """What is asked of a running sequence: its adapter's key, and whether it may not go on for now."""

    @property
    def key(self) -> int: ...

    @property
    def is_spent(self) -> bool: ...


class Turns:
    """Round robin over adapters, by key; 0 is the base. Owned by the engine thread.

    An adapter keeps the turn while it has something to run, and `TURN_S` at least if others have too; then comes whoever had none
    for longest. Every step of it counts, however long: a chunk of a long prompt on a slow machine is a turn by itself.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expected: set[int] = set()
        self._served_at: dict[int, int] = {}  # in steps
        self._num_steps = 0
        self._current = 0
        self._ends_at_s = 0.0

    def expect(self, key: int) -> None:
        """From now on there may be prompts with this adapter."""
        self._expected.add(key)

    def forget(self, key: int) -> None:
        self._expected.discard(key)
        self._served_at.pop(key, None)

    def order(self, running: Iterable[Running]) -> list[int]:
        """The adapters that have something to run, the one whose turn it is first; one at least."""
        if not self._expected:
            return [0]
        wanting = {sequence.key for sequence in running if not sequence.is_spent}
        current = [self._current] if self._current in wanting else []
        others = sorted(wanting.difference(current), key=lambda key: self._served_at.get(key, 0))
        has_time = self._clock() < self._ends_at_s
        return (current + others if has_time else others + current) or [0]

    def took(self, key: int) -> None:
        """The next step is this one's."""
        if not self._expected:
            return
        self._num_steps += 1
        self._served_at[key] = self._num_steps
        if key != self._current:
            self._current, self._ends_at_s = key, self._clock() + TURN_S
