"""What of earlier work a prompt goes on from: the policy of the cache, by the kind of model.

Attention has cells for every token, so any common beginning can be shared or copied. A recurrent or hybrid model has one state of
all it has read beside them, and cannot take it back: a prompt goes on from whoever has read a beginning of it and nothing else.
Such checkpoints are finished sequences, saved ones, and, for the candidates of one prompt, the first of them just before its last
token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from atlas.engine.host_cache import HostCache
from atlas.engine.radix import Match, PrefixTree, common_length
from atlas.engine.runner import Tokens
from atlas.engine.sequence import Sequence

WORTH_WAITING_TOKENS = 32  # a prompt lets one with a longer common prefix go first; chosen, unmeasured
TILE_ROWS, ALMOST_TILE_ROWS = 64, 52  # llama.cpp's tiles begin at 64 rows, which take less time than 53 to 63 (docs/log.md)
NOTHING = Match(0, None)


class Position(NamedTuple):
    """What a sequence of the context has read, and the key of its adapter."""

    seq_id: int
    ids: Tokens
    key: int


class Reuse(Protocol):
    """At least one token of a prompt is always left to be computed, else there are no logits."""

    def held(self, sequence: Sequence, positions: Iterable[Position]) -> Match:
        """What it can share with a sequence of the context."""

    def begin(self, seq_id: int, sequence: Sequence, match: Match) -> None:
        """Book that it shares this."""

    def saved(self, sequence: Sequence) -> Match:
        """What it can copy from the host's memory."""

    def is_worth_waiting(self, sequence: Sequence, other: Sequence, longest: int) -> bool:
        """Whether `other`, which is read in this step, will hold more of it than `longest`."""

    def part_length(self, sequence: Sequence, most: int) -> int:
        """How many of its `most` next tokens are read in one step."""


class AnyPrefix:
    """Of attention; `has_tiles`: by llama.cpp's flash attention on a CPU."""

    def __init__(self, tree: PrefixTree, host: HostCache, *, has_tiles: bool) -> None:
        self._tree, self._host, self._has_tiles = tree, host, has_tiles

    def held(self, sequence: Sequence, positions: Iterable[Position]) -> Match:
        match = self._tree.match(sequence.ids[:-1], key=sequence.key)
        fewer = sequence.length - TILE_ROWS
        is_costly = self._has_tiles and 0 <= fewer < match.length < sequence.length - ALMOST_TILE_ROWS
        return Match(fewer, match.holder if fewer else None) if is_costly else match

    def begin(self, seq_id: int, sequence: Sequence, match: Match) -> None:
        self._tree.begin(seq_id, sequence.ids, match.length, key=sequence.key)

    def saved(self, sequence: Sequence) -> Match:
        return self._host.match(sequence.ids[:-1], key=sequence.key)

    def is_worth_waiting(self, sequence: Sequence, other: Sequence, longest: int) -> bool:
        return common_length(other.ids, sequence.ids) > longest + WORTH_WAITING_TOKENS

    def part_length(self, sequence: Sequence, most: int) -> int:
        return most


class WholeState:
    """Of recurrent and hybrid models."""

    def __init__(self, tree: PrefixTree, host: HostCache) -> None:
        self._tree, self._host = tree, host

    def held(self, sequence: Sequence, positions: Iterable[Position]) -> Match:
        wanted = sequence.ids[:-1]
        fitting = (each for each in positions if each.key == sequence.key and _begins(wanted, each.ids))
        best = max(fitting, key=lambda each: len(each.ids), default=None)
        return NOTHING if best is None else Match(len(best.ids), best.seq_id)

    def begin(self, seq_id: int, sequence: Sequence, match: Match) -> None:
        if match.holder is None:
            self._tree.begin(seq_id, sequence.ids, 0, key=sequence.key)
        else:
            self._tree.join(seq_id, match.holder)

    def saved(self, sequence: Sequence) -> Match:
        match = self._host.match(sequence.ids[:-1], key=sequence.key)
        is_whole = match.holder is not None and match.length == self._host.length(match.holder)
        return match if is_whole else NOTHING

    def is_worth_waiting(self, sequence: Sequence, other: Sequence, longest: int) -> bool:
        return other.job is sequence.job and other.num_held < sequence.prompt_length - 1

    def part_length(self, sequence: Sequence, most: int) -> int:
        """Candidates of one prompt part before its last token."""
        parts_here = sequence.job.prompt.n > 1 and most == len(sequence.to_feed) > 1
        return most - 1 if parts_here else most


def _begins(wanted: Tokens, ids: Tokens) -> bool:
    return 0 < len(ids) <= len(wanted) and np.array_equal(wanted[: len(ids)], ids)
