"""Finished sequences whose cells stay in the context, for prompts that begin alike, and what becomes of those that have to go.

Every row looks over all cells of the context, masked or not. After a while that has cost about what getting a prefix back would
(ski rental: at most twice the best), so it goes: to the host's memory if there is room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from atlas.engine.host_cache import Entry, HostCache
from atlas.engine.plan import Plan
from atlas.engine.radix import PrefixTree
from atlas.engine.reuse import Position
from atlas.engine.runner import Runner, Tokens

CARRIED_ROWS = 2048  # if it has to be computed again: by arithmetic 1,760 on a CPU (docs/log.md), 16,000 for Qwen3-14B on a GPU
CARRIED_ROWS_IF_SAVED_CPU = 16  # if it is copied: measured 5 us a cell, where a row takes 0.4 to 2 for one (docs/log.md)
CARRIED_ROWS_IF_SAVED_GPU = 160  # by arithmetic: 13 us a cell of Qwen3-14B over PCIe 4, where a row takes 0.08


class Held(NamedTuple):
    """A finished prefix in the context: its tokens, how many rows had been seen at its last use, its adapter's key."""

    ids: Tokens
    num_rows: int
    key: int


class Finished:
    """Owned by the engine thread, like the cells.

    Args:
        host: where copies are kept.
        release: gives a sequence's cells and its id back.
        most: how many may stay.
        is_copied: whether those that go are copied.
        counts_prompts: a step takes as long as all its rows (a CPU); where it takes as long as reading the weights (a GPU), what
            a prompt's rows look over is next to nothing.
    """

    def __init__(
        self,
        tree: PrefixTree,
        runner: Runner,
        host: HostCache,
        release: Callable[[int], None],
        *,
        most: int,
        is_copied: bool,
        counts_prompts: bool,
    ) -> None:
        self._tree, self._runner, self._host, self._release = tree, runner, host, release
        self._most, self._counts_prompts = most, counts_prompts
        if_saved = CARRIED_ROWS_IF_SAVED_CPU if counts_prompts else CARRIED_ROWS_IF_SAVED_GPU
        self._carried_rows = if_saved if is_copied else CARRIED_ROWS
        self._held: OrderedDict[int, Held] = OrderedDict()  # by sequence id, least recently used first
        self._num_rows = 0

    def __bool__(self) -> bool:
        return bool(self._held)

    def keep(self, seq_id: int, ids: Tokens, *, key: int) -> None:
        """A sequence has ended, with these tokens in its cells."""
        self._held[seq_id] = Held(ids, self._num_rows, key)
        self.drop_stale()

    def touch(self, seq_id: int) -> None:
        """A prompt has taken what this sequence begins with, if it is one of these."""
        if seq_id in self._held:
            self._held[seq_id] = self._held.pop(seq_id)._replace(num_rows=self._num_rows)

    def positions(self) -> Iterator[Position]:
        for seq_id, held in self._held.items():
            yield Position(seq_id, held.ids, held.key)

    def looked_over(self, plan: Plan) -> None:
        """A step with these rows follows."""
        self._num_rows += self._rows_of(plan)

    def drop_stale(self, plan: Plan | None = None) -> None:
        """Let go of those beyond their number, and of those whose cells have cost more than getting them back would.

        With the rows of this plan. Cells that a running sequence holds as well, or one that was used later, are not its cost.
        """
        while len(self._held) > self._most:
            self.evict()
        seen = self._num_rows + (self._rows_of(plan) if plan else 0)
        unused: set[int] = set()
        for seq_id, held in list(self._held.items()):
            unused.add(seq_id)
            num_rows = seen - held.num_rows
            if num_rows <= self._carried_rows:
                return
            if num_rows * self._tree.cells_among(seq_id, unused) > self._carried_rows * len(held.ids):
                self._let_go(seq_id)

    def evict(self) -> None:
        """Take the cells of the one that was used longest ago."""
        self._let_go(next(iter(self._held)))

    def save(self, seq_id: int, ids: Tokens, *, key: int) -> None:
        """Copy what is in a sequence's cells out of the context, if there is room for it."""
        if self._host.wants(ids, key=key):
            self._host.put(ids, self._runner.save(seq_id), key=key)

    def remember(self, entries: Iterable[Entry]) -> None:
        """Prefixes of the base that another context of the same kind has computed."""
        for ids, state, key in entries:
            if self._host.wants(ids, key=key):
                self._host.put(ids, state, key=key)

    def known(self) -> list[Entry]:
        """Those of the base; the ones in the context have been used last."""
        for seq_id, held in self._held.items():
            self.save(seq_id, held.ids, key=held.key)
        return self._host.entries()

    def forget_adapter(self, key: int) -> None:
        """Nothing runs or waits with this adapter any more, nothing will."""
        for seq_id in [seq_id for seq_id, held in self._held.items() if held.key == key]:
            del self._held[seq_id]
            self._release(seq_id)
        self._host.forget(key)

    def _let_go(self, seq_id: int) -> None:
        held = self._held.pop(seq_id)
        self.save(seq_id, held.ids, key=held.key)
        self._release(seq_id)

    def _rows_of(self, plan: Plan) -> int:
        return len(plan.decode) + (sum(len(part.tokens) for part in plan.prefill) if self._counts_prompts else 0)
