"""What a step is to compute."""

from __future__ import annotations

from typing import NamedTuple

from atlas.engine.runner import Tokens
from atlas.engine.sequence import Sequence

Draft = tuple[int, ...]


class Part(NamedTuple):
    """Some rows of a step: the next tokens of a sequence; `is_last` when its logits are wanted.

    Candidates of one prompt that have said the same so far, in the same cells, share the row of their next token, and each draws
    from its logits. Behind the one token of a decode part there may be guesses at those that follow, a row each: its draft.
    """

    sequences: tuple[Sequence, ...]
    start: int
    tokens: Tokens
    is_last: bool
    draft: Draft = ()

    @property
    def sequence(self) -> Sequence:
        """Any of them: they are alike."""
        return self.sequences[0]

    @property
    def seq_ids(self) -> tuple[int, ...]:
        """Where the context keeps them."""
        return tuple([sequence.placed_at for sequence in self.sequences])


class Plan(NamedTuple):
    """One step: decode parts (one token each, all outputs) and prefill parts."""

    decode: list[Part]
    prefill: list[Part]
