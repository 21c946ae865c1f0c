"""Which sequences share a row of a step: candidates of one prompt that have the same tokens, in the same cells.

A cell of llama.cpp's unified cache can belong to many sequences, and so can a row of a batch. They part when they draw different
tokens. A recurrent state is one sequence's, so there each has a row of its own.
"""

from __future__ import annotations

import numpy as np

from atlas.engine.plan import Part
from atlas.engine.race import Row
from atlas.engine.radix import Node, PrefixTree
from atlas.engine.runner import Runner
from atlas.engine.sequence import Job, Sequence


class SharedRows:
    """Owned by the engine thread."""

    def __init__(self, tree: PrefixTree, runner: Runner) -> None:
        self._tree, self._runner = tree, runner
        self._can_share = runner.model.can_drop_tails

    def of(self, decoding: list[Sequence]) -> list[Row]:
        """Together those with the same cells and the same token to feed."""
        if not self._can_share:
            return [(sequence,) for sequence in decoding]
        rows: dict[tuple[Node, int], Row] = {}
        for sequence in decoding:
            what = self._tree.end(sequence.placed_at), sequence.last_token
            rows[what] = (*rows.get(what, ()), sequence)
        return list(rows.values())

    def num_unread(self, running: list[Sequence]) -> int:
        """Tokens that these have still to feed; what some read together, or one for its siblings, once."""
        total = 0
        seen: set[Job | Node] = set()
        for sequence in running:
            at: set[Job | Node] = {sequence.job, self._tree.end(sequence.placed_at)} if sequence.is_placed else {sequence.job}
            total += 1 if seen >= at else len(sequence.to_feed)
            seen |= at
        return total

    def join(self, sequence: Sequence, parts: list[Part]) -> bool:
        """Have it read what another candidate of its prompt reads in this step, in the same rows; False if there is none."""
        if not self._can_share or sequence.job.prompt.n == 1:
            return False
        found = next((at for at, part in enumerate(parts) if self._reads_alike(sequence, part.sequence)), None)
        if found is None:
            return False
        part = parts[found]
        if not sequence.is_placed:
            self._runner.share(part.sequence.placed_at, sequence.placed_at, part.start)
            self._tree.join(sequence.placed_at, part.sequence.placed_at)
            sequence.num_held, sequence.is_placed = part.start, True
        parts[found] = part._replace(sequences=(*part.sequences, sequence))
        return True

    def _reads_alike(self, sequence: Sequence, other: Sequence) -> bool:
        """Whether it has the same tokens and the same cells, or none so far."""
        is_apart = sequence.is_placed and self._tree.end(sequence.placed_at) is not self._tree.end(other.placed_at)
        return sequence.job is other.job and not is_apart and np.array_equal(sequence.ids, other.ids)
