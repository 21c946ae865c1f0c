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
from atlas.engine.runner import Runner, Tokens
from atlas.engine.sequence import Sequence

WORTH_WAITING_TOKENS = 32  # a prompt lets one with a longer common prefix go first; chosen, unmeasured
NOTHING = Match(0, None)


class Tile(NamedTuple):
    """So many rows take llama.cpp less time than a few less of them; `repeats`: so do their multiples.

    Attributes:
        almost: more rows than these take longer than a tile.
    """

    rows: int
    almost: int
    repeats: bool

    def rounded(self, num_rows: int) -> int:
        """As many rows, or, where those take less time, some more."""
        begun = num_rows // self.rows * self.rows if self.repeats else 0
        return begun + self.rows if self.almost < num_rows - begun < self.rows else num_rows


FLASH_TILE = Tile(64, 52, repeats=False)  # flash attention on a CPU; measured with f16 weights (docs/log.md)
K_QUANT_TILE = Tile(16, 11, repeats=True)  # products with K-quants on a CPU; measured with Q4_K_M and AVX-512 (docs/log.md)


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
    """Of attention; `tile`: of rows that are cheap together."""

    def __init__(self, tree: PrefixTree, host: HostCache, tile: Tile | None) -> None:
        self._tree, self._host, self._tile = tree, host, tile

    def held(self, sequence: Sequence, positions: Iterable[Position]) -> Match:
        match = self._tree.match(sequence.ids[:-1], key=sequence.key)
        if self._tile is None:
            return match
        fewer = sequence.length - self._tile.rounded(sequence.length - match.length)
        return Match(fewer, match.holder if fewer else None) if 0 <= fewer < match.length else match

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


def cpu_tile(runner: Runner) -> Tile | None:
    """Of rows that are cheap together on a CPU."""
    if runner.model.has_k_quants:
        return K_QUANT_TILE
    return FLASH_TILE if runner.has_flash_attention else None


def _begins(wanted: Tokens, ids: Tokens) -> bool:
    return 0 < len(ids) <= len(wanted) and np.array_equal(wanted[: len(ids)], ids)
