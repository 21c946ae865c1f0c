"""What a step is to compute."""

from __future__ import annotations

from typing import NamedTuple

from atlas.engine.runner import Tokens
from atlas.engine.sequence import Sequence

Draft = tuple[int, ...]


class Part(NamedTuple):
    """Some rows of a step: the next tokens of one sequence; `is_last` when its logits are wanted.

    Behind the one token of a decode part there may be guesses at those that follow, a row each: its draft.
    """

    sequence: Sequence
    start: int
    tokens: Tokens
    is_last: bool
    draft: Draft = ()


class Plan(NamedTuple):
    """One step: decode rows (one token each, all outputs) and prefill parts."""

    decode: list[Part]
    prefill: list[Part]
