"""Guesses at what an answer says next. They are verified by the model, so a wrong one costs time and nothing else."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from atlas.engine.plan import Draft
from atlas.engine.sequence import Sequence


class Guess(NamedTuple):
    """Tokens that may follow, and the kind of guess: how often those of one kind are right is counted together."""

    tokens: Draft
    kind: str


class Wanted(NamedTuple):
    """Whose next tokens are to be guessed, and how many at most."""

    sequence: Sequence
    most: int


class Drafter(Protocol):
    """A source of guesses. Owned by the engine thread.

    Attributes:
        kind: of its guesses, as far as that is known before they are made.
    """

    kind: str

    def propose(self, wanted: list[Wanted]) -> list[Guess]:
        """One guess each, in that order; an empty one if there is none."""
        ...

    def close(self) -> None:
        """Give back what it holds; called when the engine thread has ended."""
        ...


class TimedDrafter(Drafter, Protocol):
    """One whose guesses take time."""

    def cost_s(self, length: int) -> float:
        """What a guess of this length takes, for all sequences of a step together."""
        ...
